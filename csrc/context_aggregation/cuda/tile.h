// SPDX-License-Identifier: MIT
// One head's tokens on their way between global and shared memory.
#pragma once

#include <stdexcept>
#include <string>

#include "common/windows.h"
#include "context_aggregation/params.h"
#include "cuda/device.h"

namespace ck::cuda {

constexpr int kTile = 16;  // queries, or keys, of one step: the rows of mma.sync

template <class F>
constexpr F kLog2E = F(1.4426950408889634074);  // exponentials are of base 2

// The channels of a head as they lie in shared memory; those from head_dim on are zeros. 0: there are no such
// kernels.
constexpr int padded_head_dim(int head_dim) {
    return head_dim < 1 ? 0 : head_dim <= 32 ? 32 : head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 0;
}

// A shape that the kernels take, or an exception that says what came.
inline void check(const ContextAggregationShape& shape) {
    if (padded_head_dim(shape.head_dim) == 0) {
        throw std::invalid_argument("head_dim: expected 1 to 128, got " + std::to_string(shape.head_dim));
    }
    const int height = shape.kernel_height, width = shape.kernel_width;
    if (height != 0 || width != 0) check_square_window(height, width);
}

// The taps per channel whose weights are in shared memory; none of the window whose weights are too many.
constexpr int window_taps_in_shared_memory(const ContextAggregationShape& shape) {
    return shape.kernel_height == kWideWindow ? 0 : shape.kernel_height * shape.kernel_width;
}

// Calls function.operator()<D>() for the padded head_dim.
template <class Function>
void with_head_dim(int head_dim, const Function& function) {
    switch (padded_head_dim(head_dim)) {
        case 32:
            return function.template operator()<32>();
        case 64:
            return function.template operator()<64>();
        case 128:
            return function.template operator()<128>();
    }
    throw std::invalid_argument("head_dim: expected 1 to 128, got " + std::to_string(head_dim));
}

// Elements from one row of D channels to the next: 16 bytes between rows put the eight rows that ldmatrix
// reads at once into different banks.
template <class T, int D>
constexpr int kPitch = D + kVector<T>;

// The widest access, of 16 or 4 bytes or one element, that every head's rows are aligned to and consist of.
inline int row_access(const Tokens& tokens, const ContextAggregationShape& shape, int element_bytes) {
    int64_t elements = tokens.token_stride | shape.head_dim;
    // The stride of one image, or of one head, is any number.
    if (shape.batch > 1) elements |= tokens.batch_stride;
    if (shape.heads > 1) elements |= tokens.head_stride;
    const uint64_t all =
        reinterpret_cast<uintptr_t>(tokens.data) | static_cast<uint64_t>(elements) * element_bytes;
    return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : element_bytes;
}

// Starts to copy `given` floats into shared memory, aligned to 16 bytes, and zeros behind them up to `count`,
// a multiple of four if it is more.
CK_DEVICE void load_floats(float* target, const float* source, int given, int count) {
    if (given % 4 == 0 && reinterpret_cast<uintptr_t>(source) % 16 == 0) {
        for (int i = 4 * thread_index(); i < count; i += 4 * block_size()) {
            copy_async<16>(target + i, source + i, i < given);
        }
    } else {
        for (int i = thread_index(); i < count; i += block_size()) {
            copy_async<4>(target + i, source + i, i < given);
        }
    }
}

// Calls function.operator()<Access>() for what row_access has found.
template <class T, class Function>
CK_DEVICE void with_access(int access, const Function& function) {
    if (access == 16) {
        function.template operator()<16>();
    } else if (access == 4) {
        function.template operator()<4>();
    } else {
        function.template operator()<static_cast<int>(sizeof(T))>();
    }
}

namespace tile {

// In accesses of 16 bytes. A warp has kBatch times as many rows as its lanes reach at once, a constant apart,
// then those of its next turn. Copies stand in batches because in front of each batch ptxas places three
// loads that wait for the copies before.
template <class T, int D, int Pitch>
CK_DEVICE void load_rows_16(T* rows, int count, const T* tokens, int64_t stride, int valid_rows,
                            int head_dim) {
    constexpr int kColumns = D / kVector<T>, kBatch = 4, kRows = kWarpSize / kColumns;
    static_assert(kWarpSize % kColumns == 0);
    const int own = static_cast<unsigned>(lane()) / kColumns;  // of the rows at once
    const int channel = static_cast<unsigned>(lane()) % kColumns * kVector<T>;
    const bool valid = channel < head_dim;
    const int step = block_size() / kWarpSize * (kBatch * kRows);
    const int whole = valid_rows < count ? valid_rows : count;
    CK_NO_UNROLL
    for (int first = warp() * (kBatch * kRows); first < count; first += step) {
        T* const target = rows + (first + own) * Pitch + channel;
        const T* const source = tokens + static_cast<unsigned>(first + own) * stride + channel;
        const int64_t next = kRows * stride;
        if (first + kBatch * kRows <= whole) {  // of most warps
            CK_UNROLL
            for (int i = 0; i < kBatch; ++i) {
                copy_async<16>(target + i * kRows * Pitch, source + i * next, valid);
            }
        } else {
            CK_UNROLL
            for (int i = 0; i < kBatch; ++i) {
                const int row = first + own + i * kRows;
                if (row < count) {
                    copy_async<16>(target + i * kRows * Pitch, source + i * next, valid && row < valid_rows);
                }
            }
        }
    }
}

template <int Access, class T, int D, int Pitch>
CK_DEVICE void load_rows(T* rows, int count, const T* tokens, int64_t stride, int valid_rows, int head_dim) {
    constexpr int kElements = Access / static_cast<int>(sizeof(T)), kColumns = D / kElements;
    for (int i = thread_index(); i < count * kColumns; i += block_size()) {
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
// elements apart; the other rows, and the channels from head_dim to D, become zeros. All threads of the block
// share the work; the caller commits and waits. Access: see with_access.
template <int Access, class T, int D, int Pitch = kPitch<T, D>>
CK_DEVICE void load_rows(T* rows, int count, const T* tokens, int64_t stride, int valid_rows, int head_dim) {
    if constexpr (Access == 16) {
        tile::load_rows_16<T, D, Pitch>(rows, count, tokens, stride, valid_rows, head_dim);
    } else {
        tile::load_rows<Access, T, D, Pitch>(rows, count, tokens, stride, valid_rows, head_dim);
    }
}

}  // namespace ck::cuda
