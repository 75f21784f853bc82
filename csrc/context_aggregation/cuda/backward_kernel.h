// SPDX-License-Identifier: MIT
// The mix's backward: five matrix products from one reading of q, k, v and dy.
//
// A block has one head. Its warps own keys: the sums of their dk and dv stay in registers while the block
// walks over the queries, 16 at a time. Scores are computed transposed (keys x queries), so that P and dS
// come out of one product in the layout in which they go into the next. What crosses warps, through shared
// memory, are the sums over the keys: delta, a number for each query and warp, and dS for dq = scale dS k.
//
// Where heads are small, so are blocks: 49 tokens are 2 warps, and 8 such blocks share a multiprocessor
// without a barrier between them.
//
// alpha is left out until the end: dS here is P (G - delta), with G = dy v^T and delta = sum_j P G.
#pragma once

#include <algorithm>
#include <limits>

#include "context_aggregation/cuda/backward.h"
#include "context_aggregation/cuda/backward_fma.h"
#include "context_aggregation/cuda/backward_fragments.h"
#include "context_aggregation/cuda/backward_local.h"
#include "context_aggregation/cuda/backward_mma.h"
#include "context_aggregation/cuda/backward_tile.h"
#include "cuda/device.h"

namespace ck::cuda {

// Where one head's arrays lie in the block's shared memory; see backward_shared_memory.
template <class T, int D>
struct Head {
    CK_DEVICE Head(unsigned char* memory, int rows)
        : key(reinterpret_cast<T*>(memory)),
          query(key + rows * kPitch<T, D>),
          value(query + rows * kPitch<T, D>),
          grad_out(value + rows * kPitch<T, D>),
          logsumexp(reinterpret_cast<float*>(grad_out + rows * kPitch<T, D>)),
          staged(reinterpret_cast<T*>(logsumexp + rows)),
          sums(reinterpret_cast<float*>(staged + rows * kTile)) {}

    T *key, *query, *value, *grad_out;  // dq takes the place of q, and dk of k
    float* logsumexp;                   // infinite behind the last token; then delta
    T* staged;                          // dS of a step, see staged_at; windows, when all steps are done
    float* sums;                        // of a step's queries, from every warp
};

// Whether P is divided by its own sum, which frees it of the rounding of logsumexp; 16 bits hide that anyway.
template <class T>
constexpr bool kNormalize = sizeof(T) == sizeof(float);

// p becomes P, normalized if `weights` is the sum of every query's; g becomes dS, which goes to `staged` too.
template <class T, int Tiles>
CK_DEVICE void score_gradients(float (&p)[Tiles][2][4], float (&g)[Tiles][2][4], QuerySums sums, T* staged) {
    CK_UNROLL
    for (int half = 0; half < 2; ++half) {
        T* const own = staged + staged_at<T>(lane() / 4, half) + lane() % 4 * 2;
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
            CK_UNROLL
            for (int i = 0; i < 4; i += 2) {
                const int key = tile * kTile + i / 2 * 8;  // the rows of staged_at repeat every 8
                write_pair(own + key * kTile, g[tile][half][i], g[tile][half][i + 1]);
            }
        }
    }
}

template <class T, int D>
CK_KERNEL(KeySplit::most_warps(D) * kWarpSize)
backward_kernel(const BackwardArguments arguments, const KeySplit split, const int64_t first_image) {
    using Products = KeyProducts<T, D>;
    constexpr int P = kPitch<T, D>, kTiles = Products::kTiles;
    constexpr bool kWeights = kNormalize<T>;
    const ContextAggregationBackward& mix = arguments.mix;
    const ContextAggregationShape& shape = mix.shape;
    const int tokens = static_cast<int>(shape.tokens), queries = static_cast<int>(round_up(tokens, kTile));
    const int warps = static_cast<int>(split.warps), rows = static_cast<int>(split.rows);
    const int head_index = block_index().x;
    const int64_t image = first_image + block_index().y;

    CK_DYNAMIC_SHARED(memory);
    const Head<T, D> head(memory, rows);
    with_access<T>(arguments.input_access, [&]<int Access>() {
        const auto load_tile = [&](T* target, const Tokens& source) {
            load_rows<Access, T, D>(target, rows, source.head<const T>(image, head_index),
                                    source.token_stride, tokens, shape.head_dim);
        };
        load_tile(head.key, mix.k);
        load_tile(head.query, mix.q);
        load_tile(head.value, mix.v);
        load_tile(head.grad_out, mix.grad_out);
    });
    copy_async_commit();
    const float* const logsumexp =
        static_cast<const float*>(mix.logsumexp) + (image * shape.heads + head_index) * tokens;
    for (int i = thread_index(); i < queries; i += block_size()) {
        head.logsumexp[i] = i < tokens ? logsumexp[i] : std::numeric_limits<float>::infinity();
    }
    copy_async_wait<0>();
    sync_threads();

    // Read where it is needed: a register through all steps would be one too many.
    const auto alpha = [&] { return static_cast<const float*>(mix.alpha)[head_index]; };
    float dk[kTiles][D / 8][4] = {}, dv[kTiles][D / 8][4] = {};
    const int key = warp() * kTiles * kTile;
    int turn = warp();
    for (int query = 0; query < queries; query += kTile) {
        float p[kTiles][2][4] = {}, g[kTiles][2][4] = {};
        Products::multiply(p, head.key + key * P, head.query + query * P);
        sync_warp();  // the compiler would load both products' operands at once, into registers that are not
                      // there
        probabilities(p, head.logsumexp + query, arguments.exponent_scale, tokens - key, tokens - query);
        Products::multiply(g, head.value + key * P, head.grad_out + query * P);
        QuerySums::over_keys<kWeights>(p, g).template leave<kWeights>(head.sums, warp(), warps);
        sync_threads();  // and nobody reads the previous step's dS any more
        QuerySums sums = QuerySums::over_warps<kWeights>(head.sums, warps);
        if constexpr (kWeights) {
            // A query behind the last token has no weights.
            sums.weights = sums.weights == 0 ? 0 : 1 / sums.weights;
            sums.products *= sums.weights;
        }
        // For alpha's gradient, where nobody needs logsumexp any more.
        if (warp() == 0 && first_of_query()) head.logsumexp[query + own_query()] = sums.products;

        score_gradients(p, g, sums, head.staged + warp() * kTiles * kTile * kTile);
        Operand<T> weights[kTiles], gradients[kTiles];
        CK_UNROLL
        for (int i = 0; i < kTiles; ++i) {
            weights[i].set(p[i]);
            gradients[i].set(g[i]);
        }
        Products::accumulate(dv, weights, head.grad_out + query * P);
        Products::accumulate(dk, gradients, head.query + query * P);
        sync_threads();

        // dq of this step takes the place of its q. The warps take turns, each a few channels.
        constexpr int kChannels = QueryProduct<T, D>::kChannels, kUnits = D / kChannels;
        for (int unit = turn; unit < kUnits; unit += warps) {
            const QueryProduct<T, D> dq(head.staged, head.key + unit * kChannels, rows / kTile);
            const float factor = arguments.scale * alpha();
            dq.for_each([&](int row, int channel, float x, float y) {
                write_pair(head.query + (query + row) * P + unit * kChannels + channel, x * factor,
                           y * factor);
            });
        }
        turn += kUnits;
        while (turn >= warps) turn -= warps;
    }
    sync_threads();

    // dk takes the place of k, and dv that of v unless the local term comes before it is rounded.
    const float weight = alpha(), factor = arguments.scale * weight;
    CK_UNROLL
    for (int i = 0; i < kTiles; ++i) {
        const int first = (key + i * kTile) * P;
        for_each_pair(dk[i], [&](int row, int channel, float x, float y) {
            write_pair(head.key + first + row * P + channel, x * factor, y * factor);
        });
        if (mix.local_weight) continue;
        for_each_pair(dv[i], [&](int row, int channel, float x, float y) {
            write_pair(head.value + first + row * P + channel, x * weight, y * weight);
        });
    }
    sync_threads();

    float* const partials = arguments.partials + image * partial_columns(shape, arguments.local.weight);
    if (warp() == 0) {
        float alpha_sum = 0;
        for (int query = lane(); query < tokens; query += kWarpSize) alpha_sum += head.logsumexp[query];
        alpha_sum = warp_sum(alpha_sum);
        if (lane() == 0) partials[head_index] = alpha_sum;
    }
    // The windows take the place of dS and the sums, and arrive while dq and dk leave.
    const int64_t first_channel = int64_t{head_index} * shape.head_dim;
    const float* const local_weight =
        static_cast<const float*>(mix.local_weight) + first_channel * arguments.taps();
    float* const windows = reinterpret_cast<float*>(head.staged);
    if (mix.local_weight && shape.kernel_height != kWideWindow) {
        local::load_windows<D>(windows, local_weight, 0, shape.head_dim, arguments.taps());
    }
    const auto store_tile = [&](const Tokens& target, const T* source) {
        store_rows<T, D>(target.head<T>(image, head_index), target.token_stride, source, tokens,
                         shape.head_dim, arguments.output_access);
    };
    store_tile(mix.grad_q, head.query);
    store_tile(mix.grad_k, head.key);
    if (!mix.local_weight) {
        store_tile(mix.grad_v, head.value);
        return;
    }
    sync_threads();

    // The room of k and q is for dv in float, and then for the sums of the local gradient.
    float* const smem_scratch = reinterpret_cast<float*>(head.key);
    CK_UNROLL
    for (int i = 0; i < kTiles; ++i) {
        for_each_pair(dv[i], [&](int row, int channel, float x, float y) {
            write_pair(smem_scratch + (key + i * kTile + row) * P + channel, x * weight, y * weight);
        });
    }
    copy_async_wait<0>();
    sync_threads();
    const LocalHead<T> local{
        shape,
        head.value,
        head.grad_out,
        local_weight,
        windows,
        smem_scratch,
        mix.grad_v.head<T>(image, head_index),
        mix.grad_v.token_stride,
        arguments.output_access,
        arguments.local.weight ? partials + shape.heads + first_channel * (arguments.taps() + 1) : nullptr};
    static_assert(kSquareWindows.size() == 4, "a case for every window");
    switch (shape.kernel_height) {
        case 3:
            return local_backward<3, T, D>(local);
        case 5:
            return local_backward<5, T, D>(local);
        case 7:
            return local_backward<7, T, D>(local);
        case kWideWindow:
            return local_backward<kWideWindow, T, D>(local);
    }
}

template <class T, int D>
void launch_backward(const BackwardArguments& arguments, Stream stream) {
    const ContextAggregationShape& shape = arguments.mix.shape;
    const KeySplit split(shape, sizeof(T));
    // Images along the second axis of a grid; neighbors in memory are the heads.
    for (int64_t first = 0; first < shape.batch; first += kMaxBlocksYZ) {
        const Dim3 grid{static_cast<unsigned>(shape.heads),
                        static_cast<unsigned>(std::min<int64_t>(shape.batch - first, kMaxBlocksYZ))};
        launch<backward_kernel<T, D>>(grid, static_cast<int>(split.warps) * kWarpSize,
                                      backward_shared_memory(shape, sizeof(T)), stream, arguments, split,
                                      first);
    }
}

// For every padded head_dim.
template <class T>
void launch_backward(const BackwardArguments& arguments, Stream stream) {
    with_head_dim(arguments.mix.shape.head_dim, [&]<int D>() { launch_backward<T, D>(arguments, stream); });
}

}  // namespace ck::cuda
