// SPDX-License-Identifier: MIT
// The matrix products of the backward for 16-bit types, on tensor cores.
#pragma once

#include "context_aggregation/cuda/backward_fragments.h"
#include "context_aggregation/cuda/tile.h"
#include "cuda/device.h"

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

// The address that this lane gives to load_matrix for 16 rows by 16 channels, which come as four blocks: rows
// 0-7 and 8-15 of the first 8 channels, then of the others. So they are an operand A; transposed, they are
// two operands B next to each other.
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

// The products of the keys that a warp owns.
template <class T, int D>
struct KeyProducts {
    static constexpr int kTiles = KeySplit::tiles_per_warp(D, sizeof(T));

    // product (keys, 16 queries) += rows of `keys` times those of `queries`, transposed. The rows of the keys
    // would stay the same from step to step, but there are no registers for them.
    CK_DEVICE static void multiply(float (&product)[kTiles][2][4], const T* keys, const T* queries) {
        CK_UNROLL
        for (int channel = 0; channel < D; channel += 16) {
            uint32_t halves[4];
            load_matrix(halves, queries + (lane() / 16 * 8 + lane() % 8) * kPitch<T, D> + lane() / 8 % 2 * 8 +
                                    channel);
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                uint32_t key[4];
                load_matrix(key, mma::block_row<kPitch<T, D>>(keys + tile * kTile * kPitch<T, D> + channel));
                mma::multiply_add_pair<T>(product[tile][0], product[tile][1], key, halves);
            }
        }
    }

    // sums (keys, D) += operands (keys, 16 queries) times the rows of the queries.
    CK_DEVICE static void accumulate(float (&sums)[kTiles][D / 8][4], const Operand<T> (&operands)[kTiles],
                                     const T* queries) {
        CK_UNROLL
        for (int channel = 0; channel < D; channel += 16) {
            uint32_t rows[4];
            load_matrix_transposed(rows, mma::block_row<kPitch<T, D>>(queries + channel));
            CK_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                mma::multiply_add_pair<T>(sums[tile][channel / 8], sums[tile][channel / 8 + 1],
                                          operands[tile].registers, rows);
            }
        }
    }
};

// The product of 16 queries' dS with 16 channels of all keys.
template <class T, int D>
struct QueryProduct {
    static constexpr int kChannels = 16;

    // The product of dS, transposed in `staged`, with the rows of `key`.
    CK_DEVICE QueryProduct(const T* staged, const T* key, int tiles) {
        const T* const gradients = staged + staged_at<T>(lane() / 16 * 8 + lane() % 8, lane() / 8 % 2);
        const T* const rows = mma::block_row<kPitch<T, D>>(key);
        // A second chain of products hides their latency; more would not fit the registers.
        float others[2][4] = {};
        CK_NO_UNROLL
        for (int tile = 0; tile < tiles; tile += 2) {
            add_tile(sums, gradients, rows, tile);
            if (tile + 1 < tiles) add_tile(others, gradients, rows, tile + 1);
        }
        CK_UNROLL
        for (int i = 0; i < 8; ++i) sums[i / 4][i % 4] += others[i / 4][i % 4];
    }

    template <class Visit>
    CK_DEVICE void for_each(Visit visit) const {
        for_each_pair(sums, visit);
    }

  private:
    CK_DEVICE static void add_tile(float (&to)[2][4], const T* gradients, const T* rows, int tile) {
        uint32_t gradient[4], key[4];
        load_matrix_transposed(gradient, gradients + tile * kTile * kTile);
        load_matrix_transposed(key, rows + tile * kTile * kPitch<T, D>);
        mma::multiply_add_pair<T>(to[0], to[1], gradient, key);
    }

    float sums[2][4] = {};
};

}  // namespace ck::cuda
