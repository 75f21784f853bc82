// SPDX-License-Identifier: MIT
// Forward of the MLP. A task takes a few panels of tokens through a group of hidden units, a block of them at
// a time, which never leaves the cache. Where panels are too few to share among threads there are several
// groups; their contributions to the output wait in memory and are added in order. What is computed depends
// on the shape alone, not on the threads.
#include "cpu/gelu.h"
#include "cpu/group_sums.h"
#include "cpu/weight_block.h"
#include "cpu/workspace.h"
#include "fused_mlp/cpu/launch.h"

namespace ck::CK_ISA {
namespace {

// hidden = gelu(hidden + bias), rounded to T.
template <class T>
void activate(Panel<Accumulator<T>> hidden, int64_t rows, int vectors, const Accumulator<T>* bias) {
    using V = Vec<Accumulator<T>>;
    for (int64_t row = 0; row < rows; ++row) {
        for (int v = 0; v < vectors; ++v) {
            Accumulator<T>* place = hidden.from(row).data + v * kLanesOf<V>;
            store(place, rounded<T>(gelu<V>(load<V>(place) + bias[row])));
        }
    }
}

template <class T>
void forward(const FusedMlpForward& params, int threads) {
    using A = Accumulator<T>;
    constexpr int64_t lanes = kPanelLanes<A>;
    const FusedMlpShape& shape = params.shape;
    const int channels = shape.channels, hidden = shape.hidden, out_channels = shape.out_channels;
    const T* const x = static_cast<const T*>(params.x);
    const TokenOutput<T> output{static_cast<T*>(params.out),
                                params.residual ? x : nullptr,
                                static_cast<const A*>(params.b2),
                                static_cast<const A*>(params.sample_scale),
                                shape.tokens,
                                out_channels};
    const int64_t weight_bytes = static_cast<int64_t>(sizeof(T)) * hidden * (channels + out_channels);
    const TokenTasks<A> tasks(shape.samples * shape.tokens, hidden, weight_bytes);
    const Blocks<A>&panels = tasks.panels, &blocks = tasks.blocks;

    // Of each thread: x, the hidden block, and the weights that make it and are applied to it.
    const int64_t x_size = tasks.most_panels * channels * lanes, hidden_size = kUnitBlock * lanes;
    const int64_t w1_size = weight_block_size<T>(kUnitBlock, channels);
    const int64_t w2_size = weight_block_size<T>(out_channels, kUnitBlock);
    const int64_t scratch_size = x_size + hidden_size + w1_size + w2_size;
    // The output before its rounding: of the panels of a thread's task or, of several groups, of all panels.
    const int64_t y_size = out_channels * lanes, group_size = panels.count * y_size;
    const int64_t y_total =
        tasks.groups > 1 ? tasks.groups * group_size : threads * tasks.most_panels * y_size;
    A* const scratch = static_cast<A*>(workspace((threads * scratch_size + y_total) * sizeof(A)));
    A* const ys = scratch + threads * scratch_size;

    parallel_for(threads, tasks.count * tasks.groups, [&](int64_t index, int thread) {
        const int64_t group = index / tasks.count, task = index % tasks.count;
        const int64_t first = tasks.first_panel(task), last = tasks.first_panel(task + 1);
        A* const x_panels = scratch + thread * scratch_size;
        const Panel<A> h{x_panels + x_size, lanes};
        A* const w1_scratch = h.data + hidden_size;
        A* const w2_scratch = w1_scratch + w1_size;
        A* const y = tasks.groups > 1 ? ys + group * group_size + first * y_size
                                      : ys + thread * tasks.most_panels * y_size;
        for (int64_t panel = first; panel < last; ++panel) {
            pack_tokens(x + panels.begin(panel) * channels, channels, panels.size(panel), channels,
                        Panel<A>{x_panels + (panel - first) * channels * lanes, lanes});
        }
        const int64_t first_block = tasks.first_block(group);
        for (int64_t block = first_block; block < tasks.first_block(group + 1); ++block) {
            const int64_t unit = blocks.begin(block);
            const int units = blocks.size(block);
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
                multiply(by_rows(w2.data, w2.stride), out_channels, read_only(h), units, vectors,
                         block > first_block, Panel<A>{y + (panel - first) * y_size, lanes});
            }
        }
        if (tasks.groups > 1) return;
        for (int64_t panel = first; panel < last; ++panel) {
            store_tokens(Panel<A>{y + (panel - first) * y_size, lanes}, panels.begin(panel),
                         panels.size(panel), 0, out_channels, output);
        }
    });
    if (tasks.groups > 1) store_token_sums(panels, ys, tasks.groups, output, threads);
}

}  // namespace

void fused_mlp_forward(const FusedMlpForward& params, DType dtype, int threads) {
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
