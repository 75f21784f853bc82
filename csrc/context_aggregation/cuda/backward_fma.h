// SPDX-License-Identifier: MIT
// The matrix products of the backward for float32, by multiply-adds in the places of the tensor cores' lanes.
#pragma once

#include "common/device.h"
#include "context_aggregation/cuda/backward_mma.h"

namespace ck::cuda {

template <>
struct Operand<float> {
    CK_DEVICE void set(const float (&values)[2][4]) {
        CK_UNROLL
        for (int i = 0; i < 8; ++i) product[i / 4][i % 4] = values[i / 4][i % 4];
    }

    float product[2][4];
};

template <>
CK_DEVICE int staged_at<float>(int key, int half) {
    return key * kTile + ((half ^ key >> 1) & 1) * 8;
}

template <int D>
struct KeyRows<float, D> {
    static constexpr int kTiles = KeySplit::tiles_per_warp(D, sizeof(float)), kPitch = cuda::kPitch<float, D>;

    CK_DEVICE KeyRows(const float* first, int count) : rows(first), tiles(count) {}

    CK_DEVICE void multiply(float (&products)[kTiles][2][4], const float* queries) const {
        const float* const own_query = queries + lane() % 4 * 2 * kPitch;
        for (int channel = 0; channel < D; channel += 4) {
            Vec<float, 4> query[2][2];
            CK_UNROLL
            for (int i = 0; i < 4; ++i) {
                query[i / 2][i % 2] = load<4>(own_query + (i / 2 * 8 + i % 2) * kPitch + channel);
            }
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                if (tile >= tiles) continue;
                CK_UNROLL
                for (int lower = 0; lower < 2; ++lower) {
                    const int row = tile * kTile + lower * 8 + lane() / 4;
                    const Vec<float, 4> key = load<4>(rows + row * kPitch + channel);
                    CK_UNROLL
                    for (int i = 0; i < 4; ++i) {
                        float& product = products[tile][i / 2][2 * lower + i % 2];
                        CK_UNROLL
                        for (int j = 0; j < 4; ++j) product += key.data[j] * query[i / 2][i % 2].data[j];
                    }
                }
            }
        }
    }

    CK_DEVICE static void accumulate(float (&sums)[kTiles][D / 8][4],
                                     const Operand<float> (&operands)[kTiles], const float* queries,
                                     int tiles) {
        CK_UNROLL
        for (int query = 0; query < kTile; ++query) {
            const int half = query / 8, side = query % 2, holder = lane() / 4 * 4 + query % 8 / 2;
            const float* const row = queries + query * kPitch + lane() % 4 * 2;
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                if (tile >= tiles) continue;
                const float upper = shuffle(operands[tile].product[half][side], holder);
                const float lower = shuffle(operands[tile].product[half][2 + side], holder);
                CK_UNROLL
                for (int i = 0; i < D / 8; ++i) {
                    const Vec<float, 2> pair = load<2>(row + i * 8);
                    sums[tile][i][0] += upper * pair.data[0];
                    sums[tile][i][1] += upper * pair.data[1];
                    sums[tile][i][2] += lower * pair.data[0];
                    sums[tile][i][3] += lower * pair.data[1];
                }
            }
        }
    }

  private:
    const float* rows;
    int tiles;
};

template <int D>
struct QueryProduct<float, D> {
    static constexpr int kChannels = 4;

    CK_DEVICE void add(const float* staged, const float* key, int tiles) {
        const int query = lane() / 2;
        for (int tile = 0; tile < tiles; ++tile) {
            CK_UNROLL
            for (int i = 0; i < kTile; ++i) {
                const int row = tile * kTile + i;
                const float gradient = staged[staged_at<float>(row, query / 8) + query % 8];
                const Vec<float, 2> pair = load<2>(key + row * kPitch<float, D> + lane() % 2 * 2);
                sums[i % 2 * 2] += gradient * pair.data[0];
                sums[i % 2 * 2 + 1] += gradient * pair.data[1];
            }
        }
        sums[0] += sums[2];
        sums[1] += sums[3];
    }

    template <class Visit>
    CK_DEVICE void for_each(Visit visit) {
        visit(lane() / 2, lane() % 2 * 2, sums[0], sums[1]);
    }

  private:
    float sums[4] = {};  // of even keys, then of odd ones
};

}  // namespace ck::cuda
