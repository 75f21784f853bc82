// SPDX-License-Identifier: MIT
// Forward of the projection. A task takes a few panels of tokens through a group of output channels, a block
// of them at a time; what it wrote is still in the cache when it is summed up. Tasks depend on the shape
// alone and their sums are added in order: statistics do not depend on the threads.
#include "cpu/parallel.h"
#include "cpu/statistics.h"
#include "cpu/token_panels.h"
#include "cpu/weight_block.h"
#include "cpu/workspace.h"
#include "projection/cpu/launch.h"

namespace ck::CK_ISA {
namespace {

template <class T>
void forward(const ProjectionForward& params, int threads) {
    using A = Accumulator<T>;
    constexpr int64_t lanes = kPanelLanes<A>;
    const ProjectionShape& shape = params.shape;
    const int channels = shape.channels, out_channels = shape.out_channels;
    const T* const x = static_cast<const T*>(params.x);
    const TokenOutput<T> output{static_cast<T*>(params.out),
                                static_cast<const T*>(params.residual),
                                static_cast<const A*>(params.bias),
                                static_cast<const A*>(params.sample_scale),
                                shape.tokens,
                                out_channels};
    const int64_t weight_bytes = static_cast<int64_t>(sizeof(T)) * channels * out_channels;
    const TokenTasks<A> tasks(shape.samples * shape.tokens, out_channels, weight_bytes);
    const Blocks<A>&panels = tasks.panels, &blocks = tasks.blocks;

    // Of each thread: x, a panel of the block before its rounding, and the weights that make it.
    const int64_t x_size = tasks.most_panels * channels * lanes, y_size = kUnitBlock * lanes;
    const int64_t scratch_size = x_size + y_size + weight_block_size<T>(kUnitBlock, channels);
    const int64_t stride = statistics_stride(out_channels);
    const int64_t sums_size = params.channel_sum ? tasks.count * statistics_size(out_channels) : 0;
    double* const sums =
        static_cast<double*>(workspace(sums_size * sizeof(double) + threads * scratch_size * sizeof(A)));
    A* const scratch = reinterpret_cast<A*>(sums + sums_size);

    parallel_for(threads, tasks.count * tasks.groups, [&](int64_t index, int thread) {
        const int64_t group = index / tasks.count, task = index % tasks.count;
        const int64_t first = tasks.first_panel(task), last = tasks.first_panel(task + 1);
        A* const x_panels = scratch + thread * scratch_size;
        const Panel<A> y{x_panels + x_size, lanes};
        A* const weight_scratch = y.data + y_size;
        const int64_t first_block = tasks.first_block(group);
        for (int64_t block = first_block; block < tasks.first_block(group + 1); ++block) {
            const int unit = static_cast<int>(blocks.begin(block)), units = blocks.size(block);
            const auto weight =
                weight_block(static_cast<const T*>(params.weight) + static_cast<int64_t>(unit) * channels,
                             channels, units, channels, weight_scratch);
            double* const block_sums = sums + task * statistics_size(out_channels) + unit;
            for (int64_t panel = first; panel < last; ++panel) {
                const int64_t token = panels.begin(panel), tokens = panels.size(panel);
                const Panel<A> x_panel{x_panels + (panel - first) * channels * lanes, lanes};
                if (block == first_block) {
                    pack_tokens(x + token * channels, channels, tokens, channels, x_panel);
                }
                // Memory bounds a narrow projection: ask early for what is written, added, and read next.
                prefetch_rows(output.out + token * out_channels + unit, out_channels, tokens, units);
                if (output.residual) {
                    prefetch_rows(output.residual + token * out_channels + unit, out_channels, tokens, units);
                }
                if (block == first_block && panel + 1 < panels.count) {
                    prefetch_rows(x + panels.begin(panel + 1) * channels, channels, panels.size(panel + 1),
                                  channels);
                }
                multiply(by_rows(weight.data, weight.stride), units, read_only(x_panel), channels,
                         panels.vectors(panel), false, y);
                store_tokens(y, token, tokens, unit, units, output);
                if (params.channel_sum) {
                    const T* const written = output.out + token * out_channels + unit;
                    if (panel == first) {
                        begin_statistics(written, out_channels, tokens, units, block_sums, stride);
                    }
                    add_pixels(written, out_channels, tokens, units, block_sums, stride);
                }
            }
        }
    });
    if (params.channel_sum) {
        const auto tokens = [&](int64_t task) {
            return panels.begin(tasks.first_panel(task + 1)) - panels.begin(tasks.first_panel(task));
        };
        reduce_statistics(sums, tasks.count, out_channels, tokens, static_cast<A*>(params.channel_sum),
                          static_cast<A*>(params.channel_m2), threads);
    }
}

}  // namespace

void projection_forward(const ProjectionForward& params, DType dtype, int threads) {
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
