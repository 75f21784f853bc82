// SPDX-License-Identifier: MIT
// Tokens of a row-major tensor as panels with a lane for each token, and back.
#pragma once

#include "cpu/matrix_product.h"
#include "cpu/pack.h"

namespace ck::CK_ISA {

// Units (outputs) of a linear layer at a time: a panel of them is half of the first-level cache.
constexpr int kUnitBlock = 128;

// How panels of tokens make tasks, and the groups that the units are divided into where tasks are few. It
// depends on the shape alone.
template <class A>
struct TokenTasks {
    Blocks<A> panels, blocks;
    int64_t count, most_panels, groups;

    // The panels of a task share what it reads of the weights: two of them if all weights, so many bytes, are
    // more than the second-level cache holds; more where there are many tasks.
    TokenTasks(int64_t tokens, int64_t units, int64_t weight_bytes)
        : panels(panels_of<A>(tokens)), blocks(units, kUnitBlock) {
        constexpr int64_t few_tasks = 8, many_tasks = 32, cached_bytes = 2 << 20, most = 4;
        const int64_t least = weight_bytes > cached_bytes && panels.count >= few_tasks ? 2 : 1;
        const int64_t share = panels.count / many_tasks;
        most_panels = share < least ? least : share < most ? share : most;
        count = ceil_div(panels.count, most_panels);
        const int64_t wanted = ceil_div(few_tasks, count);
        groups = wanted < blocks.count ? wanted : blocks.count;
    }
    int64_t first_panel(int64_t task) const { return task * panels.count / count; }
    int64_t first_block(int64_t group) const { return group * blocks.count / groups; }
};

// What becomes of a product on its way out:  out = sample_scale · (product + bias) + residual.
template <class T>
struct TokenOutput {
    T* out;                              // (tokens, channels)
    const T* residual;                   // the same, or null
    const Accumulator<T>* bias;          // (channels,) or null
    const Accumulator<T>* sample_scale;  // of every tokens_per_sample tokens, or null
    int64_t tokens_per_sample;
    int channels;
};

// panel[channel][token] = x[token][channel]; lanes beyond the tokens repeat the last one or are 0.
template <class A, class T>
void pack_tokens(const T* x, int64_t row_stride, int64_t tokens, int channels, Panel<A> panel) {
    constexpr int L = kLanes<A>;
    for (int64_t first = 0; first < tokens; first += L) {
        pack_transposed(x + first * row_stride, row_stride, tokens - first, channels, panel.data + first,
                        panel.stride);
    }
}

// Writes `channels` channels from `channel` on, of tokens from `token` on, given the rows of these channels.
template <class A, class T>
void store_tokens(Panel<A> panel, int64_t token, int64_t tokens, int channel, int channels,
                  const TokenOutput<T>& output) {
    constexpr int L = kLanes<A>;
    using V = Vec<A>;
    for (int64_t first = 0; first < tokens; first += L) {
        const int64_t count = tokens - first < L ? tokens - first : L;
        A scale[L];
        for (int lane = 0; lane < L; ++lane) {
            const int64_t sample = (token + first + lane) / output.tokens_per_sample;
            scale[lane] = output.sample_scale && lane < count ? output.sample_scale[sample] : 1;
        }
        for (int c = 0; c < channels; c += L) {
            const int rows = channels - c < L ? channels - c : L;
            V block[L];
#pragma GCC unroll 16
            for (int row = 0; row < L; ++row) {
                block[row] = row < rows ? load<V>(panel.data + (c + row) * panel.stride + first) : V{};
            }
            transpose_step<1>(block);
            const V bias = output.bias ? load_first<V>(output.bias + channel + c, rows) : V{};
            const int64_t place = (token + first) * output.channels + channel + c;
#pragma GCC unroll 16
            for (int lane = 0; lane < L; ++lane) {
                if (lane >= count) continue;
                const int64_t offset = place + lane * static_cast<int64_t>(output.channels);
                V value = (block[lane] + bias) * scale[lane];
                if (output.residual) value += load_first<V>(output.residual + offset, rows);
                store_first(output.out + offset, value, rows);
            }
        }
    }
}

}  // namespace ck::CK_ISA
