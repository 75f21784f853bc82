// SPDX-License-Identifier: MIT
// The matrix products of the backward for float32, by multiply-adds in the places of the tensor cores' lanes.
#pragma once

#include "context_aggregation/cuda/backward_mma.h"
#include "cuda/device.h"

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
struct KeyProducts<float, D> {
    static constexpr int kTiles = KeySplit::tiles_per_warp(D, sizeof(float)), kPitch = cuda::kPitch<float, D>;

    CK_DEVICE static void multiply(float (&product)[kTiles][2][4], const float* keys, const float* queries) {
        const float* const own_query = queries + lane() % 4 * 2 * kPitch;
        CK_NO_UNROLL
        for (int channel = 0; channel < D; channel += 4) {
            Vec<float, 4> query[2][2];
            CK_UNROLL
            for (int i = 0; i < 4; ++i) {
                query[i / 2][i % 2] = load<4>(own_query + (i / 2 * 8 + i % 2) * kPitch + channel);
            }
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                CK_UNROLL
                for (int lower = 0; lower < 2; ++lower) {
                    const int row = tile * kTile + lower * 8 + lane() / 4;
                    const Vec<float, 4> key = load<4>(keys + row * kPitch + channel);
                    CK_UNROLL
                    for (int i = 0; i < 4; ++i) {
                        float& sum = product[tile][i / 2][2 * lower + i % 2];
                        CK_UNROLL
                        for (int j = 0; j < 4; ++j) sum += key.data[j] * query[i / 2][i % 2].data[j];
                    }
                }
            }
        }
    }

    CK_DEVICE static void accumulate(float (&sums)[kTiles][D / 8][4],
                                     const Operand<float> (&operands)[kTiles], const float* queries) {
        CK_NO_UNROLL
        for (int column = 0; column < 4; ++column) {  // a lane of four holds four queries
            const int holder = lane() / 4 * 4 + column;
            CK_UNROLL
            for (int i = 0; i < 4; ++i) {
                const int half = i / 2, side = i % 2;
                const float* const row = queries + (half * 8 + column * 2 + side) * kPitch + lane() % 4 * 2;
                CK_UNROLL
                for (int tile = 0; tile < kTiles; ++tile) {
                    const float upper = shuffle(operands[tile].product[half][side], holder);
                    const float lower = shuffle(operands[tile].product[half][2 + side], holder);
                    CK_UNROLL
                    for (int n = 0; n < D / 8; ++n) {
                        const Vec<float, 2> pair = load<2>(row + n * 8);
                        sums[tile][n][0] += upper * pair.data[0];
                        sums[tile][n][1] += upper * pair.data[1];
                        sums[tile][n][2] += lower * pair.data[0];
                        sums[tile][n][3] += lower * pair.data[1];
                    }
                }
            }
        }
    }
};

template <int D>
struct QueryProduct<float, D> {
    static constexpr int kChannels = 4;

    CK_DEVICE QueryProduct(const float* staged, const float* key, int tiles) {
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
    CK_DEVICE void for_each(Visit visit) const {
        visit(lane() / 2, lane() % 2 * 2, sums[0], sums[1]);
    }

  private:
    float sums[4] = {};  // of even keys, then of odd ones
};

}  // namespace ck::cuda
