// SPDX-License-Identifier: MIT
// The mix's forward in bfloat16 and float16: the products by tensor cores, scores and sums in float32.
#include <cmath>

#include "context_aggregation/cuda/forward_input.h"
#include "context_aggregation/cuda/forward_output.h"

namespace ck::cuda {

namespace {

constexpr int kTile = 16;  // queries, or keys, of one step

// An exponent's sum that is not larger than this lost nothing: no probability overflowed T, and no product
// with a value below 1e29 overflowed float32.
template <class T>
constexpr float kLargestSum = kIsBFloat16<T> ? 1 << 30 : 1 << 15;

// One warp's queries, Tiles times 16 of them, and all keys and values of the head in shared memory. In lane
// 4 g + t, index r of (Tiles, 2) stands for query 16 tile + g + 8 r.
template <class T, int D>
struct Attention {
    static constexpr int kTiles = D == 32 ? 2 : 1;
    static constexpr int kRow = kPitch<T, D>;
    using Rows = float[kTiles][2];
    using Scores = float[kTiles][2][4];

    const T* keys;
    const T* values;
    int tokens;
    float scale;  // to base 2: scale * log2(e)

    uint32_t query[kTiles][D / 16][4];
    float sum[kTiles][D / 8][4];  // of probability * value
    float weight[kTiles][4];      // of the rounded probabilities, in [0] and [2]
    Rows total;                   // of the probabilities, of this lane's keys until the end

    // `rows`: the warp's queries, 2 * kRow elements apart.
    CK_DEVICE void load_queries(const T* rows) {
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            CK_UNROLL
            for (int i = 0; i < D / 16; ++i) {
                load_matrix(query[tile][i],
                            rows + (tile * kTile + lane() % 16) * (2 * kRow) + i * 16 + lane() / 16 * 8);
            }
        }
    }

    // Query times key, of 16 keys.
    CK_DEVICE void compute_scores(Scores& scores, int key) const {
        const T* const row = keys + (key + lane() / 16 * 8 + lane() % 8) * kRow + lane() / 8 % 2 * 8;
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            CK_UNROLL
            for (int i = 0; i < 8; ++i) scores[tile][i / 4][i % 4] = 0;
        }
        CK_UNROLL
        for (int i = 0; i < D / 16; ++i) {
            uint32_t key_pairs[4];
            load_matrix(key_pairs, row + i * 16);
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                multiply_add<T>(scores[tile][0], query[tile][i], {key_pairs[0], key_pairs[1]});
                multiply_add<T>(scores[tile][1], query[tile][i], {key_pairs[2], key_pairs[3]});
            }
        }
    }

    // Whether element i of Scores' last two dimensions, of the 16 keys from `key` on, is of a token.
    CK_DEVICE bool is_token(int key, int i) const {
        return key + i / 4 * 8 + lane() % 4 * 2 + i % 2 < tokens;
    }

    // The largest scaled score of every query among the first `count` keys.
    CK_DEVICE void compute_largest(Rows& largest, int count) const {
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) largest[tile][0] = largest[tile][1] = -INFINITY;
        for (int key = 0; key < count; key += kTile) {
            Scores scores;
            compute_scores(scores, key);
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                CK_UNROLL
                for (int i = 0; i < 8; ++i) {
                    float& row = largest[tile][i / 2 % 2];
                    if (is_token(key, i)) row = fmaxf(row, scores[tile][i / 4][i % 4] * scale);
                }
            }
        }
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            CK_UNROLL
            for (int r = 0; r < 2; ++r) {
                largest[tile][r] = fmaxf(largest[tile][r], shuffle_xor(largest[tile][r], 1));
                largest[tile][r] = fmaxf(largest[tile][r], shuffle_xor(largest[tile][r], 2));
            }
        }
    }

    // Sums over all keys with probabilities 2^(scaled score - shift).
    CK_DEVICE void accumulate(const Rows& shift) {
        const uint32_t one_pair = pack<T>(1.f, 1.f);
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            total[tile][0] = total[tile][1] = 0;
            CK_UNROLL
            for (int i = 0; i < 4; ++i) weight[tile][i] = 0;
            CK_UNROLL
            for (int i = 0; i < D / 2; ++i) sum[tile][i / 4][i % 4] = 0;
        }
        for (int key = 0; key < tokens; key += kTile) {
            Scores scores;
            compute_scores(scores, key);
            uint32_t probability[kTiles][4];
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                CK_UNROLL
                for (int i = 0; i < 8; ++i) {
                    const int r = i / 2 % 2;
                    float& score = scores[tile][i / 4][i % 4];
                    score = exp2_approx(score * scale - shift[tile][r]);
                    if (key + kTile > tokens && !is_token(key, i)) score = 0;
                    total[tile][r] += score;
                }
                // The accumulators' layout is that of the next product's first operand.
                CK_UNROLL
                for (int i = 0; i < 4; ++i) {
                    probability[tile][i] =
                        pack<T>(scores[tile][i / 2][i % 2 * 2], scores[tile][i / 2][i % 2 * 2 + 1]);
                }
                multiply_add<T>(weight[tile], probability[tile], {one_pair, one_pair});
            }
            const T* const row = values + (key + lane() % 16) * kRow + lane() / 16 * 8;
            CK_UNROLL
            for (int i = 0; i < D / 16; ++i) {
                uint32_t value_pairs[4];
                load_matrix_transposed(value_pairs, row + i * 16);
                CK_UNROLL
                for (int tile = 0; tile < kTiles; ++tile) {
                    multiply_add<T>(sum[tile][2 * i], probability[tile], {value_pairs[0], value_pairs[1]});
                    multiply_add<T>(sum[tile][2 * i + 1], probability[tile],
                                    {value_pairs[2], value_pairs[3]});
                }
            }
        }
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            CK_UNROLL
            for (int r = 0; r < 2; ++r) {
                total[tile][r] += shuffle_xor(total[tile][r], 1);
                total[tile][r] += shuffle_xor(total[tile][r], 2);
            }
        }
    }

    CK_DEVICE bool lost_range() const {
        bool lost = false;
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            CK_UNROLL
            for (int r = 0; r < 2; ++r) lost = lost || !(total[tile][r] <= kLargestSum<T>);  // a NaN too
        }
        return any_lane(lost);
    }
};

template <class T, int D>
CK_KERNEL(256, D == 128 ? 1 : 2)
mix_forward_kernel(ForwardArguments arguments) {
    const MixForward& mix = arguments.mix;
    const MixShape& shape = mix.shape;
    const ForwardPlan& plan = arguments.plan;
    const int64_t batch = block_index().x / shape.heads, head = block_index().x % shape.heads;
    const int tokens = static_cast<int>(shape.tokens);
    constexpr int kRow = kPitch<T, D>;

    CK_DYNAMIC_SHARED(shared);
    T* const keys = reinterpret_cast<T*>(shared);
    T* const values = keys + plan.key_rows * kRow;
    T* const chunk = values + plan.key_rows * kRow;
    float* const weight = reinterpret_cast<float*>(chunk + plan.chunk_rows * (2 * kRow));

    load_head<T, D>(arguments, batch, head, keys, values, weight);

    for (int begin = 0; begin < tokens; begin += plan.chunk_rows) {
        const int end = begin + plan.chunk_rows < tokens ? begin + plan.chunk_rows : tokens;
        load_queries<T, D, 2 * kRow>(arguments, batch, head, begin, chunk);

        using Attention = Attention<T, D>;
        constexpr int kTiles = Attention::kTiles;
        Attention attention;
        attention.keys = keys;
        attention.values = values;
        attention.tokens = tokens;
        attention.scale = static_cast<float>(shape.scale * 1.4426950408889634);
        const int first = warp() * kTiles * kTile;
        attention.load_queries(chunk + first * (2 * kRow));

        // The sums are right for any shift that keeps them in range, and the largest of a few scores almost
        // always does. Where not, they are computed again with the largest of all.
        typename Attention::Rows shift;
        attention.compute_largest(shift, kTile);
        attention.accumulate(shift);
        if (attention.lost_range()) {
            attention.compute_largest(shift, tokens);
            attention.accumulate(shift);
        }

        const float alpha = static_cast<const float*>(mix.alpha)[head];
        float* const logsumexp =
            static_cast<float*>(mix.logsumexp) + (batch * shape.heads + head) * shape.tokens;
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            CK_UNROLL
            for (int r = 0; r < 2; ++r) {
                const int row = first + tile * kTile + lane() / 4 + 8 * r;
                // Divided by the sum of what the values were multiplied by, so that a lone probability is 1.
                const float factor = alpha / attention.weight[tile][2 * r];
                float* const out = reinterpret_cast<float*>(chunk + row * (2 * kRow)) + lane() % 4 * 2;
                CK_UNROLL
                for (int i = 0; i < D / 8; ++i) {
                    store<2>(out + i * 8, Vec<float, 2>{attention.sum[tile][i][2 * r] * factor,
                                                        attention.sum[tile][i][2 * r + 1] * factor});
                }
                if (lane() % 4 == 0 && begin + row < end) {
                    logsumexp[begin + row] =
                        (shift[tile][r] + log2_approx(attention.total[tile][r])) * 0.6931471805599453f;
                }
            }
        }
        sync_threads();
        write_output<T, D>(arguments,
                           {reinterpret_cast<float*>(chunk), values, weight, batch, head, begin, end});
    }
}

template <class T>
void forward(const ForwardArguments& arguments, const ForwardLayout& layout, Stream stream) {
    const MixShape& shape = arguments.mix.shape;
    const Dim3 grid{static_cast<unsigned>(shape.batch * shape.heads)};
    const int threads = layout.warps * kWarpSize;
    switch (padded_head_dim(shape.head_dim)) {
        case 32:
            return launch<mix_forward_kernel<T, 32>>(grid, threads, layout.bytes(), stream, arguments);
        case 64:
            return launch<mix_forward_kernel<T, 64>>(grid, threads, layout.bytes(), stream, arguments);
        default:
            return launch<mix_forward_kernel<T, 128>>(grid, threads, layout.bytes(), stream, arguments);
    }
}

}  // namespace

void forward_bfloat16(const ForwardArguments& arguments, const ForwardLayout& layout, Stream stream) {
    forward<BFloat16>(arguments, layout, stream);
}
void forward_float16(const ForwardArguments& arguments, const ForwardLayout& layout, Stream stream) {
    forward<Half>(arguments, layout, stream);
}

}  // namespace ck::cuda
