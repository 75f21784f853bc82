// SPDX-License-Identifier: MIT
// The mix's forward in bfloat16 and float16: the products by tensor cores, scores and sums in float32.
#include <cmath>

#include "context_aggregation/cuda/forward_block.h"
#include "context_aggregation/cuda/forward_output.h"

namespace ck::cuda {

namespace {

// Sums of probabilities from 1/2 (the shift's own is about 1) up to here lost nothing: no probability
// overflowed T, and no product with a value below 1e29 overflowed float32.
template <class T>
constexpr float kLargestSum = kIsBFloat16<T> ? 1 << 30 : 1 << 15;

// One warp's queries, kTiles times 16 of them, with all keys and values of the head. In lane 4 g + t, element
// [tile][r] of Rows stands for query 16 tile + g + 8 r, and [tile][n][2 r + e] of Scores for that and the key
// 8 n + 2 t + e of sixteen.
template <class T, int D>
struct Attention {
    static constexpr int kTiles = D == 32 ? 2 : 1;
    static constexpr int kRow = kPitch<T, D>;
    using Rows = float[kTiles][2];
    using Scores = float[kTiles][2][4];

    const T* keys;    // where this lane's address for ldmatrix is in the first sixteen
    const T* values;  // the same
    int tokens;
    float scale;  // of exponents to base 2

    uint32_t query[kTiles][D / 16][4];
    float sum[kTiles][D / 8][4];  // of probability * value
    float weight[kTiles][4];      // the sum of the rounded probabilities in [0] and [2]
    Rows total;                   // of the probabilities; of this lane's keys until the end

    // `rows`: the warp's queries.
    CK_DEVICE Attention(const ForwardBlock<T, D>& block, const T* rows)
        : keys(block.keys + (lane() / 16 * 8 + lane() % 8) * kRow + lane() / 8 % 2 * 8),
          values(block.values + lane() % 16 * kRow + lane() / 16 * 8),
          tokens(block.tokens),
          scale(block.scale()) {
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            CK_UNROLL
            for (int i = 0; i < D / 16; ++i) {
                load_matrix(query[tile][i], rows +
                                                (tile * kTile + lane() % 16) * ForwardBlock<T, D>::kChunkRow +
                                                i * 16 + lane() / 16 * 8);
            }
        }
    }

    // Query times key; `rows` is `keys` moved to the sixteen at hand.
    CK_DEVICE void compute_scores(Scores& scores, const T* rows) const {
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            CK_UNROLL
            for (int i = 0; i < 8; ++i) scores[tile][i / 4][i % 4] = 0;
        }
        CK_UNROLL
        for (int i = 0; i < D / 16; ++i) {
            uint32_t key_pairs[4];
            load_matrix(key_pairs, rows + i * 16);
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                multiply_add<T>(scores[tile][0], query[tile][i], {key_pairs[0], key_pairs[1]});
                multiply_add<T>(scores[tile][1], query[tile][i], {key_pairs[2], key_pairs[3]});
            }
        }
    }

    // Whether element i of a tile's scores, with the keys from `key` on, is of a token.
    CK_DEVICE bool is_token(int key, int i) const {
        return key + i / 4 * 8 + lane() % 4 * 2 + i % 2 < tokens;
    }

    // For every query the score, among the first `count` keys, that has the largest probability.
    CK_DEVICE void find_largest(Rows& largest, int count) const {
        const float sign = scale < 0 ? -1.f : 1.f;
        CK_UNROLL
        for (int i = 0; i < 2 * kTiles; ++i) largest[i / 2][i % 2] = -INFINITY;
        for (int key = 0; key < count; key += kTile) {
            Scores scores;
            compute_scores(scores, keys + key * kRow);
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                CK_UNROLL
                for (int i = 0; i < 8; ++i) {
                    float& row = largest[tile][i / 2 % 2];
                    if (is_token(key, i)) row = fmaxf(row, sign * scores[tile][i / 4][i % 4]);
                }
            }
        }
        CK_UNROLL
        for (int i = 0; i < 2 * kTiles; ++i) {
            float& row = largest[i / 2][i % 2];
            row = fmaxf(row, shuffle_xor(row, 1));
            row = sign * fmaxf(row, shuffle_xor(row, 2));
        }
    }

    // Adds sixteen keys. Masked: some of them are no tokens. Exact: see accumulate.
    template <bool Masked, bool Exact>
    CK_DEVICE void add_keys(const Rows& shift, int key, const T* key_rows, const T* value_rows) {
        Scores scores;
        compute_scores(scores, key_rows);
        uint32_t probability[kTiles][4];
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            CK_UNROLL
            for (int i = 0; i < 8; ++i) {
                float& score = scores[tile][i / 4][i % 4];
                const float row_shift = shift[tile][i / 2 % 2];
                score = exp2_approx(Exact ? (score - row_shift) * scale : score * scale - row_shift * scale);
                if (Masked && !is_token(key, i)) score = 0;
                total[tile][i / 2 % 2] += score;
            }
            // The accumulators' layout is that of the next product's first operand.
            CK_UNROLL
            for (int i = 0; i < 4; ++i) {
                probability[tile][i] =
                    pack<T>(scores[tile][i / 2][i % 2 * 2], scores[tile][i / 2][i % 2 * 2 + 1]);
            }
            const uint32_t ones = pack<T>(1.f, 1.f);
            multiply_add<T>(weight[tile], probability[tile], {ones, ones});
        }
        CK_UNROLL
        for (int i = 0; i < D / 16; ++i) {
            uint32_t value_pairs[4];
            load_matrix_transposed(value_pairs, value_rows + i * 16);
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                multiply_add<T>(sum[tile][2 * i], probability[tile], {value_pairs[0], value_pairs[1]});
                multiply_add<T>(sum[tile][2 * i + 1], probability[tile], {value_pairs[2], value_pairs[3]});
            }
        }
    }

    // Sums over all keys with probabilities 2^(scale (score - shift)). Not Exact it takes a multiply-add, but
    // the scaled shift is rounded, which for scores of 2^28 and more can be more than the exponents of T are.
    template <bool Exact>
    CK_DEVICE void accumulate(const Rows& shift) {
        CK_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            total[tile][0] = total[tile][1] = 0;
            CK_UNROLL
            for (int i = 0; i < 4; ++i) weight[tile][i] = 0;
            CK_UNROLL
            for (int i = 0; i < D / 2; ++i) sum[tile][i / 4][i % 4] = 0;
        }
        const T* key_rows = keys;
        const T* value_rows = values;
        int key = 0;
        for (; key + kTile <= tokens; key += kTile) {
            add_keys<false, Exact>(shift, key, key_rows, value_rows);
            key_rows += kTile * kRow;
            value_rows += kTile * kRow;
        }
        if (key < tokens) add_keys<true, Exact>(shift, key, key_rows, value_rows);
        CK_UNROLL
        for (int i = 0; i < 2 * kTiles; ++i) {
            total[i / 2][i % 2] += shuffle_xor(total[i / 2][i % 2], 1);
            total[i / 2][i % 2] += shuffle_xor(total[i / 2][i % 2], 2);
        }
    }

    CK_DEVICE bool lost_range() const {
        bool lost = false;
        CK_UNROLL
        for (int i = 0; i < 2 * kTiles; ++i) {
            const float sum = total[i / 2][i % 2];
            lost = lost || !(sum >= 0.5f && sum <= kLargestSum<T>);  // a NaN too
        }
        return any_lane(lost);
    }
};

template <class T, int D>
CK_KERNEL(kMaxWarps* kWarpSize, D == 128 ? 1 : 2)
context_aggregation_forward_kernel(ForwardArguments arguments) {
    CK_DYNAMIC_SHARED(shared);
    const ForwardBlock<T, D> block(arguments, shared);
    block.load_head();
    for (Chunk chunk{0, 0}; chunk.end < block.tokens;) {
        chunk = block.load_chunk(chunk.end);
        using Attention = Attention<T, D>;
        constexpr int kTiles = Attention::kTiles;
        const int first = warp() * kTiles * kTile;
        if (chunk.begin + first < chunk.end) {
            Attention attention(block, block.chunk_rows + first * block.kChunkRow);
            // The sums are right for any shift that keeps them in range, and the largest of a few scores
            // almost always does. Where not, they are computed again with the largest of all.
            typename Attention::Rows shift;
            attention.find_largest(shift, kTile);
            attention.template accumulate<false>(shift);
            if (attention.lost_range()) {
                attention.find_largest(shift, block.tokens);
                attention.template accumulate<true>(shift);
            }
            sync_warp();  // the queries have been read
            CK_UNROLL
            for (int i = 0; i < 2 * kTiles; ++i) {
                const int tile = i / 2, r = i % 2, row = first + tile * kTile + lane() / 4 + 8 * r;
                // Divided by the sum of what the values were multiplied by, so that a lone probability is 1.
                const float factor = block.alpha() / attention.weight[tile][2 * r];
                float* const out = block.attention() + row * block.kAttentionPitch + lane() % 4 * 2;
                CK_UNROLL
                for (int n = 0; n < D / 8; ++n) {
                    const float* const sum = attention.sum[tile][n] + 2 * r;
                    store(out + n * 8, Vec<float, 2>{sum[0] * factor, sum[1] * factor});
                }
                if (lane() % 4 == 0 && chunk.begin + row < chunk.end) {
                    block.logsumexp()[chunk.begin + row] =
                        shift[tile][r] * attention.scale + log2_approx(attention.total[tile][r]);
                }
            }
        }
        sync_threads();
        write_output(block, chunk);
    }
}

template <class T>
void forward(const ForwardArguments& arguments, Stream stream) {
    const ContextAggregationShape& shape = arguments.mix.shape;
    const ForwardLayout& layout = arguments.layout;
    const Dim3 grid{static_cast<unsigned>(shape.batch * shape.heads)};
    const int threads = layout.warps * kWarpSize;
    with_head_dim(shape.head_dim, [&]<int D>() {
        launch<context_aggregation_forward_kernel<T, D>>(grid, threads, layout.bytes, stream, arguments);
    });
}

}  // namespace

void forward_bfloat16(const ForwardArguments& arguments, Stream stream) {
    forward<BFloat16>(arguments, stream);
}
void forward_float16(const ForwardArguments& arguments, Stream stream) { forward<Half>(arguments, stream); }

}  // namespace ck::cuda
