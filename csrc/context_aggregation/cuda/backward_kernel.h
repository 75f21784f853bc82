// SPDX-License-Identifier: MIT
// The mix's backward: five matrix products from one reading of q, k, v and dy.
//
// A warp owns keys: the sums of their dk and dv, and where they fit their rows of k and v, stay in its
// registers while the block walks over the queries, 16 at a time. Scores are computed transposed (keys x
// queries), so that P and dS come out of one product in the layout in which they go into the next. What
// crosses warps, through shared memory, are the sums over the keys: delta, a number for each query and warp,
// and dS for dq = scale dS k.
//
// alpha is left out until the end: dS here is P (G - delta), with G = dy v^T and delta = sum_j P G.
#pragma once

#include <algorithm>
#include <limits>

#include "common/device.h"
#include "context_aggregation/cuda/backward.h"
#include "context_aggregation/cuda/backward_fma.h"
#include "context_aggregation/cuda/backward_fragments.h"
#include "context_aggregation/cuda/backward_local.h"
#include "context_aggregation/cuda/backward_mma.h"
#include "context_aggregation/cuda/backward_tile.h"

namespace ck::cuda {

// Where one head's arrays lie in the block's shared memory; see backward_head_bytes.
template <class T, int D>
struct Head {
    CK_DEVICE Head(unsigned char* memory, int rows, int chunk_rows)
        : key(reinterpret_cast<T*>(memory)),
          query(key + rows * kPitch<T, D>),
          value(query + rows * kPitch<T, D>),
          grad_out(value + rows * kPitch<T, D>),
          staged(grad_out + rows * kPitch<T, D>),
          logsumexp(reinterpret_cast<float*>(staged + chunk_rows * kTile)),
          sums(logsumexp + rows) {}

    T *key, *query, *value, *grad_out;  // dq takes the place of q, and dk of k
    T* staged;                          // dS of a step, see staged_at
    float* logsumexp;                   // in powers of 2, infinite behind the last token
    // Of the warps in a step; with several chunks, of all queries.
    float* sums;
};

// Whether P is divided by its own sum, which frees it of the rounding of logsumexp; 16 bits hide that anyway.
template <class T>
constexpr bool kNormalize = sizeof(T) == sizeof(float);

// p becomes P, normalized if `weights` is the sum of every query's; g becomes dS, which goes to `staged` too.
template <class T, int Tiles>
CK_DEVICE void score_gradients(float (&p)[Tiles][2][4], float (&g)[Tiles][2][4], QuerySums sums, T* staged,
                               int tiles) {
    CK_UNROLL
    for (int half = 0; half < 2; ++half) {
        const Float2 delta = of_half(sums.products, half);
        Float2 factor{1, 1};
        if constexpr (kNormalize<T>) factor = of_half(sums.weights, half);
        CK_UNROLL
        for (int tile = 0; tile < Tiles; ++tile) {
            CK_UNROLL
            for (int i = 0; i < 4; ++i) {
                if constexpr (kNormalize<T>) p[tile][half][i] *= i % 2 ? factor.y : factor.x;
                g[tile][half][i] = p[tile][half][i] * (g[tile][half][i] - (i % 2 ? delta.y : delta.x));
            }
            if (tile >= tiles) continue;
            CK_UNROLL
            for (int i = 0; i < 4; i += 2) {
                const int key = tile * kTile + i / 2 * 8 + lane() / 4;
                write_pair(staged + staged_at<T>(key, half) + lane() % 4 * 2, g[tile][half][i],
                           g[tile][half][i + 1]);
            }
        }
    }
}

template <class T, int D>
CK_KERNEL(KeySplit::most_warps(D) * kWarpSize)
backward_kernel(const BackwardArguments arguments, const KeySplit split) {
    constexpr int P = kPitch<T, D>, kTiles = KeySplit::tiles_per_warp(D, sizeof(T));
    constexpr float kLog2E = 1.4426950408889634f;
    const MixBackward& mix = arguments.mix;
    const MixShape& shape = mix.shape;
    const int tokens = static_cast<int>(shape.tokens), tiles = static_cast<int>(ceil_div(tokens, kTile));
    const int warps = split.warps, chunk_tiles = warps * kTiles, rows = tiles * kTile;

    const Team team{thread_index() % (warps * kWarpSize), warps * kWarpSize};
    const int team_index = thread_index() / team.threads, team_warp = team.thread / kWarpSize;
    const int64_t index = int64_t{block_index().x} * split.heads_per_block + team_index;
    const bool exists = index < arguments.heads();
    const int64_t image = exists ? index / shape.heads : 0, head_index = exists ? index % shape.heads : 0;
    const int valid_rows = exists ? tokens : 0;

    CK_DYNAMIC_SHARED(memory);
    const Head<T, D> head(memory + team_index * backward_head_bytes(rows, D, sizeof(T)), rows,
                          std::min(rows, chunk_tiles * kTile));
    const auto load_tile = [&](T* target, const Tokens& source) {
        load_rows<T, D>(target, rows, source.head<const T>(image, head_index), source.token_stride,
                        valid_rows, shape.head_dim, arguments.input_access, team.thread, team.threads);
    };
    load_tile(head.value, mix.v);
    load_tile(head.grad_out, mix.grad_out);
    copy_async_commit();
    load_tile(head.key, mix.k);
    load_tile(head.query, mix.q);
    copy_async_commit();
    const float* const logsumexp = static_cast<const float*>(mix.logsumexp) + index * tokens;
    for (int i = team.thread; i < rows; i += team.threads) {
        head.logsumexp[i] = i < valid_rows ? logsumexp[i] * kLog2E : std::numeric_limits<float>::infinity();
    }

    float* const scratch = reinterpret_cast<float*>(head.staged);
    float* const image_partials = arguments.partials + image * partial_columns(shape, arguments.local.weight);
    if (arguments.local.weight) {
        copy_async_wait<1>();
        sync_threads();
        constexpr int kCapacity = kTile * kTile * sizeof(T) / sizeof(float);
        float* const partials =
            exists ? image_partials + shape.heads + head_index * shape.head_dim * (arguments.taps() + 1)
                   : nullptr;
        switch (shape.kernel_height) {
            case 3:
                local_weight_gradient<3, T, D, kCapacity>(head.value, head.grad_out, shape, scratch, partials,
                                                          team);
                break;
            case 5:
                local_weight_gradient<5, T, D, kCapacity>(head.value, head.grad_out, shape, scratch, partials,
                                                          team);
                break;
            default:
                local_weight_gradient<7, T, D, kCapacity>(head.value, head.grad_out, shape, scratch, partials,
                                                          team);
        }
    }
    copy_async_wait<0>();
    sync_threads();

    const float alpha = static_cast<const float*>(mix.alpha)[head_index];
    const float scale = static_cast<float>(shape.scale);
    const int chunks = split.chunks;
    // Several chunks: delta is needed before the first dS, from all of them.
    for (int query = 0; chunks > 1 && query < rows; query += kTile) {
        QuerySums sums = {};
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const int tile = chunk * chunk_tiles + team_warp * kTiles;
            const int own_tiles = std::clamp(tiles - tile, 0, kTiles);
            float p[kTiles][2][4] = {}, g[kTiles][2][4] = {};
            KeyRows<T, D>(head.key + tile * kTile * P, own_tiles).multiply(p, head.query + query * P);
            KeyRows<T, D>(head.value + tile * kTile * P, own_tiles).multiply(g, head.grad_out + query * P);
            probabilities(p, head.logsumexp + query, scale * kLog2E, tokens - tile * kTile);
            const QuerySums more = QuerySums::over_keys<kNormalize<T>>(p, g);
            sums.products += more.products;
            sums.weights += more.weights;
        }
        sums.leave<kNormalize<T>>(scratch, team_warp, warps);
        sync_threads();
        sums = QuerySums::over_warps<kNormalize<T>>(scratch, warps);
        if (team_warp == 0 && first_of_query()) {
            head.sums[query + own_query()] = sums.products;
            if constexpr (kNormalize<T>) head.sums[rows + query + own_query()] = sums.weights;
        }
        sync_threads();
    }

    float alpha_sum = 0;
    float dk[kTiles][D / 8][4], dv[kTiles][D / 8][4];
    float* const unfinished_dq = arguments.unfinished + index * rows * P;
    float* const unfinished_dv = unfinished_dq + arguments.heads() * rows * P;
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const int first_tile = chunk * chunk_tiles, tile = first_tile + team_warp * kTiles;
        const int own_tiles = std::clamp(tiles - tile, 0, kTiles);
        const KeyRows<T, D> key(head.key + tile * kTile * P, own_tiles);
        const KeyRows<T, D> value(head.value + tile * kTile * P, own_tiles);
        CK_UNROLL
        for (int i = 0; i < kTiles * (D / 8) * 4; ++i) {
            dk[i / (D / 2)][i / 4 % (D / 8)][i % 4] = dv[i / (D / 2)][i / 4 % (D / 8)][i % 4] = 0;
        }
        for (int query = 0; query < rows; query += kTile) {
            const T *const query_rows = head.query + query * P, *const grad_rows = head.grad_out + query * P;
            float p[kTiles][2][4] = {}, g[kTiles][2][4] = {};
            key.multiply(p, query_rows);
            value.multiply(g, grad_rows);
            probabilities(p, head.logsumexp + query, scale * kLog2E, tokens - tile * kTile);
            if (chunks == 1)
                QuerySums::over_keys<kNormalize<T>>(p, g).template leave<kNormalize<T>>(head.sums, team_warp,
                                                                                        warps);
            sync_threads();  // nobody reads the previous step's dS any more
            QuerySums sums;
            if (chunks == 1) {
                sums = QuerySums::over_warps<kNormalize<T>>(head.sums, warps);
            } else {
                sums.products = head.sums[query + own_query()];
                if constexpr (kNormalize<T>) sums.weights = head.sums[rows + query + own_query()];
            }
            if constexpr (kNormalize<T>) {
                // A query behind the last token has no weights.
                sums.weights = sums.weights == 0 ? 0 : 1 / sums.weights;
                sums.products *= sums.weights;
            }
            if (chunk == 0 && first_of_query()) alpha_sum += sums.products;

            score_gradients(p, g, sums, head.staged + team_warp * kTiles * kTile * kTile, own_tiles);
            Operand<T> weights[kTiles], gradients[kTiles];
            CK_UNROLL
            for (int i = 0; i < kTiles; ++i) {
                weights[i].set(p[i]);
                gradients[i].set(g[i]);
            }
            KeyRows<T, D>::accumulate(dv, weights, grad_rows, own_tiles);
            KeyRows<T, D>::accumulate(dk, gradients, query_rows, own_tiles);
            sync_threads();

            // A few channels of dq for a warp, in turns. They take the place of q, which is not needed any
            // more.
            constexpr int kChannels = QueryProduct<T, D>::kChannels, kUnits = D / kChannels;
            for (int unit = (team_warp + query / kTile * kUnits) % warps; unit < kUnits; unit += warps) {
                QueryProduct<T, D> dq;
                const int64_t first = int64_t{query} * P + unit * kChannels;
                if (chunk > 0) {
                    dq.for_each([&](int row, int channel, float& x, float& y) {
                        const Float2 pair = read_pair(unfinished_dq + first + row * P + channel);
                        x = pair.x;
                        y = pair.y;
                    });
                }
                dq.add(head.staged, head.key + first_tile * kTile * P + unit * kChannels,
                       std::min(chunk_tiles, tiles - first_tile));
                const bool last = chunk == chunks - 1;
                dq.for_each([&](int row, int channel, float x, float y) {
                    if (last) {
                        write_pair(head.query + first + row * P + channel, x * (scale * alpha),
                                   y * (scale * alpha));
                    } else if (exists) {
                        write_pair(unfinished_dq + first + row * P + channel, x, y);
                    }
                });
            }
        }
        sync_threads();

        // dk takes the place of k, and so does dv unless the local term is to be added before it is rounded.
        CK_UNROLL
        for (int i = 0; i < kTiles; ++i) {
            if (i >= own_tiles) continue;
            const int64_t first = int64_t{tile + i} * kTile * P;
            for_each_pair(dk[i], [&](int row, int channel, float x, float y) {
                write_pair(head.key + first + row * P + channel, x * (scale * alpha), y * (scale * alpha));
            });
            for_each_pair(dv[i], [&](int row, int channel, float x, float y) {
                if (!mix.local_weight) {
                    write_pair(head.value + first + row * P + channel, x * alpha, y * alpha);
                } else if (chunks > 1 && exists) {
                    write_pair(unfinished_dv + first + row * P + channel, x * alpha, y * alpha);
                }
            });
        }
    }
    sync_threads();

    if (team_warp == 0) {
        alpha_sum = warp_sum(alpha_sum);
        if (exists && lane() == 0) image_partials[head_index] = alpha_sum;
    }
    const auto store_tile = [&](const Tokens& target, const T* source) {
        store_rows<T, D>(target.head<T>(image, head_index), target.token_stride, source, valid_rows,
                         shape.head_dim, arguments.output_access, team);
    };
    store_tile(mix.grad_q, head.query);
    store_tile(mix.grad_k, head.key);
    if (!mix.local_weight) {
        store_tile(mix.grad_v, head.value);
        return;
    }
    sync_threads();

    // dv in float lies where q and v were; k makes room for what it is rounded to.
    float* sums = unfinished_dv;
    if (chunks == 1) {
        sums = reinterpret_cast<float*>(head.query);
        CK_UNROLL
        for (int i = 0; i < kTiles; ++i) {
            const int tile = team_warp * kTiles + i;
            if (tile >= tiles) continue;
            for_each_pair(dv[i], [&](int row, int channel, float x, float y) {
                write_pair(sums + (tile * kTile + row) * P + channel, x * alpha, y * alpha);
            });
        }
        sync_threads();
    }
    if (exists) {
        const float* const weight =
            static_cast<const float*>(mix.local_weight) + head_index * shape.head_dim * arguments.taps();
        switch (shape.kernel_height) {
            case 3:
                local_value_gradient<3, P, T, D>(head.grad_out, shape, weight, sums, head.key, team);
                break;
            case 5:
                local_value_gradient<5, P, T, D>(head.grad_out, shape, weight, sums, head.key, team);
                break;
            default:
                local_value_gradient<7, P, T, D>(head.grad_out, shape, weight, sums, head.key, team);
        }
    }
    sync_threads();
    store_tile(mix.grad_v, head.key);
}

template <class T, int D>
void launch_backward(const BackwardArguments& arguments, Stream stream) {
    const KeySplit split(arguments.mix.shape, sizeof(T));
    const int64_t blocks = ceil_div(arguments.heads(), split.heads_per_block);
    const size_t head_bytes = backward_head_bytes(round_up(arguments.mix.shape.tokens, kTile), D, sizeof(T));
    launch<backward_kernel<T, D>>(Dim3{static_cast<unsigned>(blocks)},
                                  split.heads_per_block * split.warps * kWarpSize,
                                  split.heads_per_block * head_bytes, stream, arguments, split);
}

// For every padded head_dim.
template <class T>
void launch_backward(const BackwardArguments& arguments, Stream stream) {
    switch (padded_head_dim(arguments.mix.shape.head_dim)) {
        case 32:
            return launch_backward<T, 32>(arguments, stream);
        case 64:
            return launch_backward<T, 64>(arguments, stream);
        default:
            return launch_backward<T, 128>(arguments, stream);
    }
}

}  // namespace ck::cuda
