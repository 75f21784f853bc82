// SPDX-License-Identifier: MIT
// Sums of what several groups of tasks left behind for the same numbers, always in the order of the groups.
#pragma once

#include "cpu/parallel.h"
#include "cpu/token_panels.h"

namespace ck::CK_ISA {

// The sum of what the groups have at `place`, `stride` numbers apart.
template <class A>
CK_INLINE Vec<A> sum_groups(const A* place, int64_t groups, int64_t stride) {
    Vec<A> sum = load<Vec<A>>(place);
    for (int64_t group = 1; group < groups; ++group) sum += load<Vec<A>>(place + group * stride);
    return sum;
}

// store_tokens of the sums, in tasks of a panel of tokens and a block of channels. `tiles` has for each
// group, and that for each panel of tokens, the rows of all channels.
template <class A, class T>
void store_token_sums(const Blocks<A>& panels, A* tiles, int64_t groups, const TokenOutput<T>& output,
                      int threads) {
    constexpr int64_t lanes = kPanelLanes<A>;
    constexpr int block = 128;
    const int64_t tile = output.channels * lanes, parts = ceil_div(output.channels, block);
    parallel_for(threads, panels.count * parts, [&](int64_t index, int) {
        const int64_t panel = index / parts;
        const int channel = static_cast<int>(index % parts) * block;
        const int channels = output.channels - channel < block ? output.channels - channel : block;
        const Panel<A> sums{tiles + panel * tile + channel * lanes, lanes};
        for (int row = 0; row < channels; ++row) {
            for (int v = 0; v < panels.vectors(panel); ++v) {
                A* const place = sums.from(row).data + v * kLanes<A>;
                store(place, sum_groups(place, groups, panels.count * tile));
            }
        }
        store_tokens(sums, panels.begin(panel), panels.size(panel), channel, channels, output);
    });
}

// target = the sums over groups of (rows, columns) matrices.
template <class A, class T>
void store_sums(Panel<const A> source, int64_t groups, int64_t group_stride, int64_t rows, int64_t columns,
                T* target, int64_t target_stride) {
    constexpr int L = kLanes<A>;
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t c = 0; c < columns; c += L) {
            const int count = columns - c < L ? static_cast<int>(columns - c) : L;
            store_first(target + row * target_stride + c,
                        sum_groups(source.from(row).data + c, groups, group_stride), count);
        }
    }
}

// The same, transposed: target has a row for each column of the source, whose rows fill at most one vector.
template <class A, class T>
void store_sums_transposed(Panel<const A> source, int64_t groups, int64_t group_stride, int rows,
                           int64_t columns, T* target, int64_t target_stride) {
    constexpr int L = kLanes<A>;
    for (int64_t c = 0; c < columns; c += L) {
        Vec<A> block[L] = {};
        for (int row = 0; row < rows; ++row) {
            block[row] = sum_groups(source.from(row).data + c, groups, group_stride);
        }
        transpose_step<1>(block);
        for (int lane = 0; lane < L && c + lane < columns; ++lane) {
            store_first(target + (c + lane) * target_stride, block[lane], rows);
        }
    }
}

}  // namespace ck::CK_ISA
