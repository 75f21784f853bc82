// SPDX-License-Identifier: MIT
// How a warp holds products of 16 rows, its tiles of keys, with 16 queries: as mma.sync leaves them. Lane l
// has rows l / 4 and l / 4 + 8, and of both halves of the queries 2 (l % 4) and the one after; float32 keeps
// to it.
#pragma once

#include "context_aggregation/cuda/backward.h"
#include "cuda/device.h"

namespace ck::cuda {

// Calls visit(row, column, first, second) for the pairs of neighbors that this lane holds.
template <int Halves, class Visit>
CK_DEVICE void for_each_pair(const float (&product)[Halves][4], Visit visit) {
    CK_UNROLL
    for (int half = 0; half < Halves; ++half) {
        CK_UNROLL
        for (int lower = 0; lower < 2; ++lower) {
            visit(lane() / 4 + lower * 8, half * 8 + lane() % 4 * 2, product[half][2 * lower],
                  product[half][2 * lower + 1]);
        }
    }
}

// P of this warp's keys and 16 queries, from their products. At most 1 by definition, which the rounding of
// large scores must not change. Tokens behind the last, key or query, have none: a query of zeros times a key
// of infinities would be NaN.
template <int Tiles>
CK_DEVICE void probabilities(float (&p)[Tiles][2][4], const float* logsumexp, float scale, int keys_left,
                             int queries_left) {
    CK_UNROLL
    for (int half = 0; half < 2; ++half) {
        const Vec<float, 2> shift = load<2>(logsumexp + half * 8 + lane() % 4 * 2);
        CK_UNROLL
        for (int tile = 0; tile < Tiles; ++tile) {
            CK_UNROLL
            for (int i = 0; i < 4; ++i) {
                const float exponent = p[tile][half][i] * scale - shift.data[i % 2];
                p[tile][half][i] = exp2_approx(minimum(exponent, 0));
            }
        }
    }
    if (keys_left >= Tiles * kTile && queries_left >= kTile) return;  // but in the last warp or step
    CK_UNROLL
    for (int tile = 0; tile < Tiles; ++tile) {
        CK_UNROLL
        for (int i = 0; i < 8; ++i) {
            const int key = tile * kTile + i / 2 % 2 * 8 + lane() / 4;
            const int query = i / 4 * 8 + lane() % 4 * 2 + i % 2;
            if (key >= keys_left || query >= queries_left) p[tile][i / 4][i % 4] = 0;
        }
    }
}

// A number for each of the 16 queries, over the lanes of a warp: lanes that differ in bit 2 hold the same
// one.
CK_DEVICE int own_query() { return lane() / 16 * 8 + lane() % 4 * 2 + lane() / 8 % 2; }
CK_DEVICE bool first_of_query() { return lane() / 4 % 2 == 0; }

// The numbers of the two queries of a half that this lane has products of.
CK_DEVICE Float2 of_half(float number, int half) {
    return {shuffle(number, half * 16 + lane() % 4), shuffle(number, half * 16 + 8 + lane() % 4)};
}

// The sum over the warp's rows of what every lane has summed for its queries of both halves.
CK_DEVICE float sum_over_rows(const Float2 (&sums)[2]) {
    // Each exchange leaves a lane with half of the queries.
    const bool upper = lane() & 16, odd = lane() & 8;
    const Float2 kept = upper ? sums[1] : sums[0], given = upper ? sums[0] : sums[1];
    const float first = kept.x + shuffle_xor(given.x, 16), second = kept.y + shuffle_xor(given.y, 16);
    const float sum = (odd ? second : first) + shuffle_xor(odd ? first : second, 8);
    return sum + shuffle_xor(sum, 4);
}

// Of a query: sum_j P and sum_j P G.
struct QuerySums {
    float weights, products;

    template <bool Weights, int Tiles>
    CK_DEVICE static QuerySums over_keys(const float (&p)[Tiles][2][4], const float (&g)[Tiles][2][4]) {
        Float2 weights[2] = {}, products[2] = {};
        CK_UNROLL
        for (int tile = 0; tile < Tiles; ++tile) {
            CK_UNROLL
            for (int half = 0; half < 2; ++half) {
                const float (&a)[4] = p[tile][half], (&b)[4] = g[tile][half];
                weights[half].x += a[0] + a[2];
                weights[half].y += a[1] + a[3];
                products[half].x += a[0] * b[0] + a[2] * b[2];
                products[half].y += a[1] * b[1] + a[3] * b[3];
            }
        }
        return {Weights ? sum_over_rows(weights) : 1.f, sum_over_rows(products)};
    }

    // Leaves the warp's sums in `sums` (warps, 16), and the weights behind them.
    template <bool Weights>
    CK_DEVICE void leave(float* sums, int warp, int warps) const {
        if (!first_of_query()) return;
        sums[warp * kTile + own_slot()] = products;
        if constexpr (Weights) sums[(warps + warp) * kTile + own_slot()] = weights;
    }

    // What all warps have left, in their order: two lanes share a query.
    template <bool Weights>
    CK_DEVICE static QuerySums over_warps(const float* sums, int warps) {
        QuerySums total = {}, more = {};  // two loads under way
        CK_NO_UNROLL
        for (int warp = 0; warp + lane() / 4 % 2 < warps; warp += 4) {
            total.add<Weights>(sums, warp, warps);
            if (warp + 2 + lane() / 4 % 2 < warps) more.add<Weights>(sums, warp + 2, warps);
        }
        total.products += more.products;
        if constexpr (Weights) total.weights += more.weights;
        total.products += shuffle_xor(total.products, 4);
        if constexpr (Weights) total.weights += shuffle_xor(total.weights, 4);
        return total;
    }

  private:
    template <bool Weights>
    CK_DEVICE void add(const float* sums, int warp, int warps) {
        products += sums[warp * kTile + own_slot()];
        if constexpr (Weights) weights += sums[(warps + warp) * kTile + own_slot()];
    }
    CK_DEVICE static int own_slot() { return own_query() + lane() / 4 % 2 * kTile; }
};

}  // namespace ck::cuda
