// SPDX-License-Identifier: MIT
// One head's tokens on their way between global and shared memory.
#pragma once

#include "common/device.h"
#include "context_aggregation/params.h"

namespace ck::cuda {

constexpr int kTile = 16;  // queries, or keys, of one step: the rows of mma.sync

template <class F>
constexpr F kLog2E = F(1.4426950408889634074);  // exponentials are of base 2

// The channels of a head as they lie in shared memory; those from head_dim on are zeros.
constexpr int padded_head_dim(int head_dim) { return head_dim <= 32 ? 32 : head_dim <= 64 ? 64 : 128; }

// Elements from one row of D channels to the next: 16 bytes between rows put the eight rows that ldmatrix
// reads at once into different banks.
template <class T, int D>
constexpr int kPitch = D + kVector<T>;

// The widest access, of 16 or 4 bytes or one element, that every head's rows are aligned to and consist of.
inline int row_access(const Tokens& tokens, int head_dim, int element_bytes) {
    const auto all =
        reinterpret_cast<uintptr_t>(tokens.data) |
        static_cast<uint64_t>(tokens.batch_stride | tokens.token_stride | tokens.head_stride | head_dim) *
            element_bytes;
    return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : element_bytes;
}

namespace tile {

// In accesses of 16 bytes every thread stays in its column, so that its addresses only move by a constant.
template <class T, int D, int Pitch>
CK_DEVICE void load_rows_16(T* rows, int count, const T* tokens, int64_t stride, int valid_rows, int head_dim,
                            int thread, int threads) {
    constexpr int kColumns = D / kVector<T>;
    static_assert(kWarpSize % kColumns == 0);
    const int channel = thread % kColumns * kVector<T>, step = threads / kColumns;
    const bool valid = channel < head_dim;
    int row = thread / kColumns;
    T* target = rows + row * Pitch + channel;
    const T* source = tokens + row * stride + channel;
    const int64_t source_step = step * stride;
    for (; row < valid_rows && row < count; row += step) {
        copy_async<16>(target, source, valid);
        target += step * Pitch;
        source += source_step;
    }
    for (; row < count; row += step) {
        copy_async<16>(target, tokens, false);
        target += step * Pitch;
    }
}

template <int Access, class T, int D, int Pitch>
CK_DEVICE void load_rows(T* rows, int count, const T* tokens, int64_t stride, int valid_rows, int head_dim,
                         int thread, int threads) {
    constexpr int kElements = Access / static_cast<int>(sizeof(T)), kColumns = D / kElements;
    for (int i = thread; i < count * kColumns; i += threads) {
        const int row = i / kColumns, channel = i % kColumns * kElements;
        const bool valid = row < valid_rows && channel < head_dim;
        const T* const source = tokens + row * stride + channel;
        T* const target = rows + row * Pitch + channel;
        if constexpr (Access >= 4) {
            copy_async<Access>(target, source, valid);
        } else {
            *target = valid ? *source : T{};
        }
    }
}

}  // namespace tile

// Starts to copy `valid_rows` tokens, `stride` elements apart, into `count` rows of shared memory, `Pitch`
// elements apart; the other rows, and the channels from head_dim to D, become zeros. `thread` of `threads`
// share the work; the caller commits and waits. `access` is from row_access.
template <class T, int D, int Pitch = kPitch<T, D>>
CK_DEVICE void load_rows(T* rows, int count, const T* tokens, int64_t stride, int valid_rows, int head_dim,
                         int access, int thread, int threads) {
    if (access == 16) {
        tile::load_rows_16<T, D, Pitch>(rows, count, tokens, stride, valid_rows, head_dim, thread, threads);
    } else if (access == 4) {
        tile::load_rows<4, T, D, Pitch>(rows, count, tokens, stride, valid_rows, head_dim, thread, threads);
    } else {
        tile::load_rows<sizeof(T), T, D, Pitch>(rows, count, tokens, stride, valid_rows, head_dim, thread,
                                                threads);
    }
}

}  // namespace ck::cuda
