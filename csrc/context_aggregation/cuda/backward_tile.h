// SPDX-License-Identifier: MIT
// What the backward does with rows of tokens in shared memory besides loading them.
#pragma once

#include "common/device.h"
#include "context_aggregation/cuda/tile.h"

namespace ck::cuda {

// The threads that work on one head, and the calling one of them.
struct Team {
    int thread, threads;
};

// Two neighboring channels.
template <class T>
CK_DEVICE Float2 read_pair(const T* address) {
    const Vec<T, 2> pair = load<2>(address);
    return {to_float(pair.data[0]), to_float(pair.data[1])};
}
template <class T>
CK_DEVICE void write_pair(T* address, float first, float second) {
    if constexpr (sizeof(T) == sizeof(float)) {
        store<2>(address, Vec<T, 2>{first, second});
    } else {
        const uint32_t pair = pack<T>(first, second);
        store<2>(address, Vec<T, 2>{T{static_cast<uint16_t>(pair)}, T{static_cast<uint16_t>(pair >> 16)}});
    }
}

namespace tile {

template <int Access, class T, int D, int Pitch>
CK_DEVICE void store_rows(T* tokens, int64_t stride, const T* rows, int count, int head_dim, Team team) {
    constexpr int kElements = Access / static_cast<int>(sizeof(T)), kColumns = D / kElements;
    for (int i = team.thread; i < count * kColumns; i += team.threads) {
        const int row = i / kColumns, channel = i % kColumns * kElements;
        if (channel < head_dim) {
            store<kElements>(tokens + row * stride + channel, load<kElements>(rows + row * Pitch + channel));
        }
    }
}

}  // namespace tile

// Writes `count` rows to tokens that are `stride` elements apart. `access` is from row_access.
template <class T, int D, int Pitch = kPitch<T, D>>
CK_DEVICE void store_rows(T* tokens, int64_t stride, const T* rows, int count, int head_dim, int access,
                          Team team) {
    if (access == 16) {
        tile::store_rows<16, T, D, Pitch>(tokens, stride, rows, count, head_dim, team);
    } else if (access == 4) {
        tile::store_rows<4, T, D, Pitch>(tokens, stride, rows, count, head_dim, team);
    } else {
        tile::store_rows<sizeof(T), T, D, Pitch>(tokens, stride, rows, count, head_dim, team);
    }
}

}  // namespace ck::cuda
