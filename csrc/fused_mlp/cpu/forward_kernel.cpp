// SPDX-License-Identifier: MIT
// Forward of the MLP. A task takes a few panels of tokens through a group of hidden units, a block of them at
// a time, which never leaves the cache. Where panels are too few to share among threads there are several
// groups; their contributions to the output wait in memory and are added in order. What is computed depends
// on the shape alone, not on the threads.
#include "cpu/gelu.h"
#include "cpu/group_sums.h"
#include "cpu/weight_block.h"
#include "cpu/workspace.h"
#include "fused_mlp/cpu/kernels.h"

namespace ck::CK_ISA {
namespace {

// Hidden units at a time: a panel of them is half of the first-level cache.
constexpr int kHiddenBlock = 128;
// With fewer tasks the hidden units are split too.
constexpr int64_t kLeastTasks = 8;
// Panels of a task, that share a block of converted weights; and tasks from which on it has so many.
constexpr int64_t kTaskPanels = 4, kManyTasks = 32;

template <class A>
struct Plan {
    Panels<A> panels;
    int64_t panels_per_task, tasks, groups, blocks;

    explicit Plan(const MlpShape& shape)
        : panels(shape.samples * shape.tokens),
          blocks(shape.hidden > kHiddenBlock ? ceil_div(shape.hidden, kHiddenBlock) : 1) {
        const int64_t share = panels.count / kManyTasks;
        panels_per_task = share < 1 ? 1 : share < kTaskPanels ? share : kTaskPanels;
        tasks = ceil_div(panels.count, panels_per_task);
        const int64_t wanted = ceil_div(kLeastTasks, panels.count);
        groups = wanted < blocks ? wanted : blocks;
    }
};

// hidden = gelu(hidden + bias), rounded to T.
template <class T>
void activate(Panel<Accumulator<T>> hidden, int64_t rows, int vectors, const Accumulator<T>* bias) {
    using V = Vec<Accumulator<T>>;
    for (int64_t row = 0; row < rows; ++row) {
        for (int v = 0; v < vectors; ++v) {
            Accumulator<T>* place = hidden.from(row).data + v * kLanesOf<V>;
            const V x = load<V>(place) + bias[row];
            store(place, rounded<T>(x * normal_distribution(x)));
        }
    }
}

template <class T>
void forward(const MlpForward& params, int threads) {
    using A = Accumulator<T>;
    constexpr int64_t lanes = kPanelLanes<A>;
    const MlpShape& shape = params.shape;
    const int channels = shape.channels, hidden = shape.hidden, out_channels = shape.out_channels;
    const T* const x = static_cast<const T*>(params.x);
    const TokenOutput<T> output{static_cast<T*>(params.out),
                                params.residual ? x : nullptr,
                                static_cast<const A*>(params.b2),
                                static_cast<const A*>(params.sample_scale),
                                shape.tokens,
                                out_channels};
    const Plan<A> plan(shape);
    const Panels<A>& panels = plan.panels;

    // Of each thread: x, the hidden block, and the weights that make it and are applied to it.
    const int64_t x_size = plan.panels_per_task * channels * lanes, hidden_size = kHiddenBlock * lanes;
    const int64_t w1_size = weight_block_size<T>(kHiddenBlock, channels);
    const int64_t w2_size = weight_block_size<T>(out_channels, kHiddenBlock);
    const int64_t scratch_size = x_size + hidden_size + w1_size + w2_size;
    // The output before its rounding: of the panels of a thread's task or, of several groups, of all panels.
    const int64_t y_size = out_channels * lanes, group_size = panels.count * y_size;
    const int64_t y_total =
        plan.groups > 1 ? plan.groups * group_size : threads * plan.panels_per_task * y_size;
    A* const scratch = static_cast<A*>(workspace((threads * scratch_size + y_total) * sizeof(A)));
    A* const ys = scratch + threads * scratch_size;

    parallel_for(threads, plan.tasks * plan.groups, [&](int64_t index, int thread) {
        const int64_t group = index / plan.tasks, first = index % plan.tasks * plan.panels_per_task;
        const int64_t last =
            first + plan.panels_per_task < panels.count ? first + plan.panels_per_task : panels.count;
        A* const x_panels = scratch + thread * scratch_size;
        const Panel<A> h{x_panels + x_size, lanes};
        A* const w1_scratch = h.data + hidden_size;
        A* const w2_scratch = w1_scratch + w1_size;
        A* const y = plan.groups > 1 ? ys + group * group_size + first * y_size
                                     : ys + thread * plan.panels_per_task * y_size;
        for (int64_t panel = first; panel < last; ++panel) {
            pack_tokens(x + panels.begin(panel) * channels, channels, panels.size(panel), channels,
                        Panel<A>{x_panels + (panel - first) * channels * lanes, lanes});
        }
        const int64_t first_block = group * plan.blocks / plan.groups;
        const int64_t last_block = (group + 1) * plan.blocks / plan.groups;
        for (int64_t block = first_block; block < last_block; ++block) {
            const int64_t unit = block * hidden / plan.blocks;
            const int units = static_cast<int>((block + 1) * hidden / plan.blocks - unit);
            const auto w1 = weight_block(static_cast<const T*>(params.w1) + unit * channels, channels, units,
                                         channels, w1_scratch);
            const auto w2 = weight_block(static_cast<const T*>(params.w2) + unit, hidden, out_channels, units,
                                         w2_scratch);
            for (int64_t panel = first; panel < last; ++panel) {
                const int vectors = panels.vectors(panel);
                multiply(by_rows(w1.data, w1.stride), units,
                         Panel<const A>{x_panels + (panel - first) * channels * lanes, lanes}, channels,
                         vectors, false, h);
                activate<T>(h, units, vectors, static_cast<const A*>(params.b1) + unit);
                multiply(by_rows(w2.data, w2.stride), out_channels, Panel<const A>{h.data, lanes}, units,
                         vectors, block > first_block, Panel<A>{y + (panel - first) * y_size, lanes});
            }
        }
        if (plan.groups > 1) return;
        for (int64_t panel = first; panel < last; ++panel) {
            store_tokens(Panel<A>{y + (panel - first) * y_size, lanes}, panels.begin(panel),
                         panels.size(panel), 0, out_channels, output);
        }
    });
    if (plan.groups > 1) store_token_sums(panels, ys, plan.groups, output, threads);
}

}  // namespace

void mlp_forward(const MlpForward& params, DType dtype, int threads) {
    switch (dtype) {
        case DType::float32:
            return forward<float>(params, threads);
        case DType::float64:
            return forward<double>(params, threads);
        case DType::bfloat16:
            return forward<BFloat16>(params, threads);
        case DType::float16:
            return forward<Half>(params, threads);
    }
}

}  // namespace ck::CK_ISA
