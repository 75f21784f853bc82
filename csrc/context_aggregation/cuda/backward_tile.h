// SPDX-License-Identifier: MIT
// What the backward does with rows of tokens in shared memory besides loading them.
#pragma once

#include <bit>

#include "context_aggregation/cuda/tile.h"
#include "cuda/device.h"

namespace ck::cuda {

// Two neighboring channels.
template <class T>
CK_DEVICE Float2 read_pair(const T* address) {
    const Vec<T, 2> pair = load<2>(address);
    if constexpr (sizeof(T) == sizeof(float)) {
        return {pair.data[0], pair.data[1]};
    } else {
        return unpack<T>(std::bit_cast<uint32_t>(pair));
    }
}
template <class T>
CK_DEVICE void write_pair(T* address, float first, float second) {
    if constexpr (sizeof(T) == sizeof(float)) {
        store<2>(address, Vec<T, 2>{first, second});
    } else {
        store<2>(address, std::bit_cast<Vec<T, 2>>(pack<T>(first, second)));
    }
}

namespace tile {

template <int Access, class T, int D, int Pitch>
CK_DEVICE void store_rows(T* tokens, int64_t stride, const T* rows, int count, int head_dim) {
    constexpr int kElements = Access / static_cast<int>(sizeof(T)), kColumns = D / kElements;
    CK_NO_UNROLL
    for (int i = thread_index(); i < count * kColumns; i += block_size()) {
        const int row = i / kColumns, channel = i % kColumns * kElements;
        if (channel < head_dim) {
            store<kElements>(tokens + row * stride + channel, load<kElements>(rows + row * Pitch + channel));
        }
    }
}

}  // namespace tile

// Writes `count` rows to tokens that are `stride` elements apart. `access` is from row_access.
template <class T, int D, int Pitch = kPitch<T, D>>
CK_DEVICE void store_rows(T* tokens, int64_t stride, const T* rows, int count, int head_dim, int access) {
    if (access == 16) {
        tile::store_rows<16, T, D, Pitch>(tokens, stride, rows, count, head_dim);
    } else if (access == 4) {
        tile::store_rows<4, T, D, Pitch>(tokens, stride, rows, count, head_dim);
    } else {
        tile::store_rows<sizeof(T), T, D, Pitch>(tokens, stride, rows, count, head_dim);
    }
}

}  // namespace ck::cuda
