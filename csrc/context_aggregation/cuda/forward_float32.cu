// SPDX-License-Identifier: MIT
// The mix's forward in float32: products by fused multiply-add, from tiles in registers.
#include <cmath>

#include "context_aggregation/cuda/forward_block.h"
#include "context_aggregation/cuda/forward_output.h"

namespace ck::cuda {

namespace {

constexpr int kQueries = 16, kKeys = 32;  // of one step of a warp

// Sums of probabilities up to here lost nothing: no product with a value below 1e29 overflowed.
constexpr float kLargestSum = 1 << 30;

// One warp's 16 queries; all keys and values of the head are in shared memory. Lane 8 g + m has the queries
// g + 4 i, of every 32 keys the keys m + 8 j, and of every 32 channels the channels 4 m to 4 m + 3. So the
// lanes that read at once read the same row or neighboring rows, from different banks.
template <int D>
struct Attention {
    static constexpr int kRow = kPitch<float, D>;

    const float* queries;
    const float* keys;
    const float* values;
    float* probabilities;  // (16, 32), rows kProbabilityPitch apart
    int tokens;
    float scale;  // to base 2: scale * log2(e)

    float sum[4][D / 8];  // of probability * value
    float total[4];       // of the probabilities, of this lane's keys until the end

    // `first` is the first of the warp's queries in the chunk.
    CK_DEVICE Attention(const ForwardBlock<float, D>& block, int first)
        : queries(block.chunk_rows + first * kRow),
          keys(block.keys),
          values(block.values),
          probabilities(block.scratch + first * kProbabilityPitch),
          tokens(block.tokens),
          scale(block.scale()) {}

    CK_DEVICE static int group() { return lane() / 8; }
    CK_DEVICE static int member() { return lane() % 8; }

    CK_DEVICE void compute_scores(float (&scores)[4][4], int key) const {
        const float* const query_row = queries + group() * kRow;
        const float* const key_row = keys + (key + member()) * kRow;
        CK_UNROLL
        for (int i = 0; i < 16; ++i) scores[i / 4][i % 4] = 0;
        for (int channel = 0; channel < D; channel += 4) {
            Vec<float, 4> q[4], k[4];
            CK_UNROLL
            for (int i = 0; i < 4; ++i) {
                q[i] = load<4>(query_row + 4 * i * kRow + channel);
                k[i] = load<4>(key_row + 8 * i * kRow + channel);
            }
            CK_UNROLL
            for (int c = 0; c < 4; ++c) {
                CK_UNROLL
                for (int i = 0; i < 16; ++i) scores[i / 4][i % 4] += q[i / 4].data[c] * k[i % 4].data[c];
            }
        }
    }

    CK_DEVICE bool is_token(int key, int j) const { return key + member() + 8 * j < tokens; }

    // For every query the score, among the first `count` keys, that has the largest probability.
    CK_DEVICE void find_largest(float (&largest)[4], int count) const {
        const float sign = scale < 0 ? -1.f : 1.f;
        CK_UNROLL
        for (int i = 0; i < 4; ++i) largest[i] = -INFINITY;
        for (int key = 0; key < count; key += kKeys) {
            float scores[4][4];
            compute_scores(scores, key);
            CK_UNROLL
            for (int i = 0; i < 16; ++i) {
                if (is_token(key, i % 4)) largest[i / 4] = fmaxf(largest[i / 4], sign * scores[i / 4][i % 4]);
            }
        }
        CK_UNROLL
        for (int i = 0; i < 4; ++i) {
            CK_UNROLL
            for (int distance = 1; distance < 8; distance *= 2) {
                largest[i] = fmaxf(largest[i], shuffle_xor(largest[i], distance));
            }
            largest[i] *= sign;
        }
    }

    // Sums over all keys with probabilities 2^(scale (score - shift)).
    CK_DEVICE void accumulate(const float (&shift)[4]) {
        CK_UNROLL
        for (int i = 0; i < 4; ++i) {
            total[i] = 0;
            CK_UNROLL
            for (int c = 0; c < D / 8; ++c) sum[i][c] = 0;
        }
        for (int key = 0; key < tokens; key += kKeys) {
            float scores[4][4];
            compute_scores(scores, key);
            sync_warp();  // the previous probabilities have been read
            CK_UNROLL
            for (int i = 0; i < 4; ++i) {
                CK_UNROLL
                for (int j = 0; j < 4; ++j) {
                    float probability = exp2_approx((scores[i][j] - shift[i]) * scale);
                    if (!is_token(key, j)) probability = 0;
                    total[i] += probability;
                    probabilities[(group() + 4 * i) * kProbabilityPitch + member() + 8 * j] = probability;
                }
            }
            sync_warp();
            const int left = tokens - key < kKeys ? tokens - key : kKeys;
            for (int j = 0; j < left; j += 4) {
                Vec<float, 4> p[4];
                CK_UNROLL
                for (int i = 0; i < 4; ++i) {
                    p[i] = load<4>(probabilities + (group() + 4 * i) * kProbabilityPitch + j);
                }
                CK_UNROLL
                for (int c = 0; c < D / 32; ++c) {
                    CK_UNROLL
                    for (int n = 0; n < 4; ++n) {
                        const auto value = load<4>(values + (key + j + n) * kRow + 32 * c + 4 * member());
                        CK_UNROLL
                        for (int i = 0; i < 16; ++i) {
                            sum[i / 4][4 * c + i % 4] += p[i / 4].data[n] * value.data[i % 4];
                        }
                    }
                }
            }
        }
        CK_UNROLL
        for (int i = 0; i < 4; ++i) {
            CK_UNROLL
            for (int distance = 1; distance < 8; distance *= 2) total[i] += shuffle_xor(total[i], distance);
        }
    }

    CK_DEVICE bool lost_range() const {
        bool lost = false;
        CK_UNROLL
        for (int i = 0; i < 4; ++i) lost = lost || !(total[i] <= kLargestSum);  // a NaN too
        return any_lane(lost);
    }
};

template <int D>
CK_KERNEL(kMaxWarps* kWarpSize, D == 32 ? 2 : 1)
context_aggregation_forward_kernel(ForwardArguments arguments) {
    CK_DYNAMIC_SHARED(shared);
    const ForwardBlock<float, D> block(arguments, shared);
    block.load_head();
    for (Chunk chunk{0, 0}; chunk.end < block.tokens;) {
        chunk = block.load_chunk(chunk.end);
        const int first = warp() * kQueries;
        if (chunk.begin + first < chunk.end) {
            Attention<D> attention(block, first);
            // As with tensor cores: a shift that keeps the sums in range is enough.
            float shift[4];
            attention.find_largest(shift, kKeys);
            attention.accumulate(shift);
            if (attention.lost_range()) {
                attention.find_largest(shift, block.tokens);
                attention.accumulate(shift);
            }
            sync_warp();  // the queries have been read
            CK_UNROLL
            for (int i = 0; i < 4; ++i) {
                const int row = first + attention.group() + 4 * i;
                const float factor = block.alpha() / attention.total[i];
                CK_UNROLL
                for (int c = 0; c < D / 32; ++c) {
                    const float* const sum = attention.sum[i] + 4 * c;
                    store(block.attention() + row * block.kRow + 32 * c + 4 * attention.member(),
                          Vec<float, 4>{sum[0] * factor, sum[1] * factor, sum[2] * factor, sum[3] * factor});
                }
                if (attention.member() == 0 && chunk.begin + row < chunk.end) {
                    block.logsumexp()[chunk.begin + row] =
                        shift[i] * attention.scale + log2_approx(attention.total[i]);
                }
            }
        }
        sync_threads();
        write_output(block, chunk);
    }
}

}  // namespace

void forward_float32(const ForwardArguments& arguments, Stream stream) {
    const ContextAggregationShape& shape = arguments.mix.shape;
    const ForwardLayout& layout = arguments.layout;
    const Dim3 grid{static_cast<unsigned>(shape.batch * shape.heads)};
    const int threads = layout.warps * kWarpSize;
    with_head_dim(shape.head_dim, [&]<int D>() {
        launch<context_aggregation_forward_kernel<D>>(grid, threads, layout.bytes, stream, arguments);
    });
}

}  // namespace ck::cuda
