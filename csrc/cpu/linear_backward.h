// SPDX-License-Identifier: MIT
// What the backward of every linear layer consists of. A task adds up the gradients that a group of tokens
// and a group of the layer's units have in common, tile by tile of tokens; what several groups contribute to
// the same number waits in memory and is added in order.
#pragma once

#include "cpu/token_panels.h"

namespace ck::CK_ISA {

// Panels of tokens in a tile: the more there are, the less often the gradients of the weights pass by.
constexpr int64_t kTilePanels = 4;

// How a backward is divided into tasks, by the shape alone: what it computes does not depend on the threads.
struct BackwardGroups {
    int64_t token_groups, unit_groups;
};

// Of all ways to make enough tasks the one that needs the least memory, given how many numbers each group of
// tokens (the gradients of the weights) and each of several groups of units (that of the input) leaves
// behind.
inline BackwardGroups backward_groups(int64_t tiles, int64_t blocks, int64_t weights, int64_t inputs) {
    constexpr int64_t tasks = 16;
    BackwardGroups best{1, 1};
    int64_t least = INT64_MAX;
    for (int64_t wanted = 1; wanted <= tasks; wanted *= 2) {
        const int64_t token_groups = wanted < tiles ? wanted : tiles;
        const int64_t rest = ceil_div(tasks, token_groups), unit_groups = rest < blocks ? rest : blocks;
        const int64_t numbers = token_groups * weights + (unit_groups > 1 ? unit_groups * inputs : 0);
        const bool enough = token_groups * unit_groups >= tasks || wanted == tasks;
        if (enough && numbers < least) {
            least = numbers;
            best = {token_groups, unit_groups};
        }
    }
    return best;
}

// The rows of up to `capacity` tokens, by panels of channels.
template <class A>
struct TokenRows {
    A* data;
    int64_t capacity;
    Blocks<A> panels;

    TokenRows(A* data, int64_t capacity, int channels)
        : data(data), capacity(capacity), panels(panels_of<A>(channels)) {}

    static int64_t size(int64_t capacity, int channels) { return capacity * round_up(channels, kLanes<A>); }
    Panel<A> panel(int64_t panel) const {
        return {data + panels.begin(panel) * capacity, panels.vectors(panel) * kLanes<A>};
    }
};

// rows = sample_scale · x for `tokens` tokens from `first` on, `row_stride` numbers apart; without a scale
// when that is null.
template <class A, class T>
void load_rows(const T* x, int64_t row_stride, int64_t first, int64_t tokens, const A* sample_scale,
               int64_t tokens_per_sample, const TokenRows<A>& rows) {
    for (int64_t begin = first; begin < first + tokens;) {
        const int64_t sample = begin / tokens_per_sample, next = (sample + 1) * tokens_per_sample;
        const int64_t end = next < first + tokens ? next : first + tokens;
        const A scale = sample_scale ? sample_scale[sample] : A{1};
        for (int64_t p = 0; p < rows.panels.count; ++p) {
            const Panel<A> panel = rows.panel(p).from(begin - first);
            pack_rows(x + begin * row_stride + rows.panels.begin(p), row_stride, end - begin,
                      rows.panels.size(p), scale, panel.data, static_cast<int>(panel.stride));
        }
        begin = end;
    }
}

// panel[channel][token] of `tokens` tokens from `first` on; its rows are as many as whole vectors of channels
// have.
template <class A>
void transpose_rows(const TokenRows<A>& rows, int64_t first, int64_t tokens, Panel<A> panel) {
    for (int64_t p = 0; p < rows.panels.count; ++p) {
        const Panel<A> source = rows.panel(p).from(first);
        pack_tokens(static_cast<const A*>(source.data), source.stride, tokens,
                    static_cast<int>(source.stride), panel.from(rows.panels.begin(p)));
    }
}

// grad_weight[unit][channel] = Σ_token grad[unit][token] · rows[token][channel], or added to it.
template <class A>
void weight_gradient(Panel<const A> grad, int64_t units, int64_t tokens, const TokenRows<A>& rows, bool add,
                     Panel<A> grad_weight) {
    for (int64_t p = 0; p < rows.panels.count; ++p) {
        const Panel<A> panel = rows.panel(p);
        multiply(by_rows(grad.data, grad.stride), units, Panel<const A>{panel.data, panel.stride}, tokens,
                 rows.panels.vectors(p), add,
                 Panel<A>{grad_weight.data + rows.panels.begin(p), grad_weight.stride});
    }
}

// sums[channel] = Σ_token rows[token][channel], or added to it. Sums of short sums lose less than one long
// sum.
template <class A>
void sum_rows(const TokenRows<A>& rows, int64_t tokens, bool add, A* sums) {
    using V = Vec<A>;
    constexpr int64_t run = 8;
    for (int64_t p = 0; p < rows.panels.count; ++p) {
        const Panel<A> panel = rows.panel(p);
        for (int64_t c = 0; c < panel.stride; c += kLanes<A>) {
            V sum = {};
            for (int64_t first = 0; first < tokens; first += run) {
                const int64_t end = first + run < tokens ? first + run : tokens;
                V run_sum = {};
                for (int64_t token = first; token < end; ++token)
                    run_sum += load<V>(panel.from(token).data + c);
                sum += run_sum;
            }
            A* const place = sums + rows.panels.begin(p) + c;
            store(place, add ? load<V>(place) + sum : sum);
        }
    }
}

// sums[row] = Σ_token panel[row][token], or added to it.
template <class A>
void sum_tokens(Panel<const A> panel, int64_t rows, int64_t tokens, bool add, A* sums) {
    using V = Vec<A>;
    for (int64_t row = 0; row < rows; ++row) {
        V sum = {};
        for (int64_t token = 0; token < tokens; token += kLanes<A>) {
            sum += keep_first(load<V>(panel.from(row).data + token), tokens - token, A{0});
        }
        const A total = reduce_add(sum);
        sums[row] = add ? sums[row] + total : total;
    }
}

}  // namespace ck::CK_ISA
