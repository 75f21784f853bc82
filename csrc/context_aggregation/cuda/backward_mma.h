// SPDX-License-Identifier: MIT
// The matrix products of the backward for 16-bit types, on tensor cores.
#pragma once

#include "common/device.h"
#include "context_aggregation/cuda/backward_fragments.h"
#include "context_aggregation/cuda/tile.h"

namespace ck::cuda {

// What the products with 16 queries become before they are multiplied again.
template <class T>
struct Operand {
    CK_DEVICE void set(const float (&product)[2][4]) {
        CK_UNROLL
        for (int i = 0; i < 4; ++i) {
            registers[i] = pack<T>(product[i / 2][i % 2 * 2], product[i / 2][i % 2 * 2 + 1]);
        }
    }

    uint32_t registers[4];
};

namespace mma {

template <class T>
CK_DEVICE void multiply_add_pair(float (&first)[4], float (&second)[4], const uint32_t (&a)[4],
                                 const uint32_t (&b)[4]) {
    const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
    multiply_add<T>(first, a, left);
    multiply_add<T>(second, a, right);
}

// The address that this lane gives to load_matrix<4> for a block of 16 rows by 16 channels: as operand A, or,
// transposed, as operand B of two products whose reduction is over the rows.
template <int Pitch, class T>
CK_DEVICE const T* block_row(const T* rows) {
    return rows + lane() % 16 * Pitch + lane() / 16 * 8;
}

}  // namespace mma

// Where `staged` (keys, 16 queries) has 8 queries of a key. Four keys later the halves of a row change
// places: eight rows of one half then lie in different banks.
template <class T>
CK_DEVICE int staged_at(int key, int half) {
    return key * kTile + ((half ^ key >> 2) & 1) * 8;
}

// The rows of k or v that a warp owns, as operands.
template <class T, int D>
struct KeyRows {
    static constexpr int kTiles = KeySplit::tiles_per_warp(D, sizeof(T));
    static constexpr bool kKept = D <= 64;  // with 128 channels there are no registers for it

    CK_DEVICE KeyRows(const T* first, int count) : rows(first), tiles(count) {
        if constexpr (kKept) {
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                if (tile >= tiles) continue;
                CK_UNROLL
                for (int step = 0; step < D / 16; ++step) read(kept[tile][step], tile, step);
            }
        }
    }

    // products[tile][half] = these rows times 8 rows of `queries`, transposed.
    CK_DEVICE void multiply(float (&products)[kTiles][2][4], const T* queries) const {
        CK_UNROLL
        for (int channel = 0; channel < D; channel += 32) {
            uint32_t halves[2][4];
            CK_UNROLL
            for (int half = 0; half < 2; ++half) {
                load_matrix(halves[half],
                            queries + (half * 8 + lane() % 8) * kPitch<T, D> + channel + lane() / 8 * 8);
            }
            CK_UNROLL
            for (int step = 0; step < 2; ++step) {
                CK_UNROLL
                for (int tile = 0; tile < kTiles; ++tile) {
                    if (tile >= tiles) continue;
                    uint32_t operand[4];
                    if constexpr (kKept) {
                        CK_UNROLL
                        for (int i = 0; i < 4; ++i) operand[i] = kept[tile][channel / 16 + step][i];
                    } else {
                        read(operand, tile, channel / 16 + step);
                    }
                    CK_UNROLL
                    for (int half = 0; half < 2; ++half) {
                        const uint32_t query[2] = {halves[half][2 * step], halves[half][2 * step + 1]};
                        multiply_add<T>(products[tile][half], operand, query);
                    }
                }
            }
        }
    }

    // sums (keys, D) += operands (keys, 16 queries) times the rows of the queries.
    CK_DEVICE static void accumulate(float (&sums)[kTiles][D / 8][4], const Operand<T> (&operands)[kTiles],
                                     const T* queries, int tiles) {
        CK_UNROLL
        for (int channel = 0; channel < D; channel += 16) {
            uint32_t rows[4];
            load_matrix_transposed(rows, mma::block_row<kPitch<T, D>>(queries + channel));
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                if (tile >= tiles) continue;
                mma::multiply_add_pair<T>(sums[tile][channel / 8], sums[tile][channel / 8 + 1],
                                          operands[tile].registers, rows);
            }
        }
    }

  private:
    CK_DEVICE void read(uint32_t (&operand)[4], int tile, int step) const {
        load_matrix(operand, mma::block_row<kPitch<T, D>>(rows + tile * kTile * kPitch<T, D> + step * 16));
    }

    const T* rows;
    int tiles;
    uint32_t kept[kTiles][kKept ? D / 16 : 1][4];
};

// The product of 16 queries' dS with 16 channels of all keys.
template <class T, int D>
struct QueryProduct {
    static constexpr int kChannels = 16;

    // += dS, transposed in `staged`, times the rows of `key`.
    CK_DEVICE void add(const T* staged, const T* key, int tiles) {
        float others[2][4] = {};  // a second chain of products hides their latency
        for (int tile = 0; tile < tiles; tile += 2) {
            add_tile(sums, staged, key, tile);
            if (tile + 1 < tiles) add_tile(others, staged, key, tile + 1);
        }
        CK_UNROLL
        for (int i = 0; i < 8; ++i) sums[i / 4][i % 4] += others[i / 4][i % 4];
    }

    template <class Visit>
    CK_DEVICE void for_each(Visit visit) {
        for_each_pair(sums, visit);
    }

  private:
    CK_DEVICE static void add_tile(float (&to)[2][4], const T* staged, const T* key, int tile) {
        uint32_t gradients[4], rows[4];
        const int row = tile * kTile + lane() / 16 * 8 + lane() % 8;
        load_matrix_transposed(gradients, staged + staged_at<T>(row, lane() / 8 % 2));
        load_matrix_transposed(rows, mma::block_row<kPitch<T, D>>(key + tile * kTile * kPitch<T, D>));
        mma::multiply_add_pair<T>(to[0], to[1], gradients, rows);
    }

    float sums[2][4] = {};
};

}  // namespace ck::cuda
