// SPDX-License-Identifier: MIT
// Backward of the projection: see cpu/linear_backward.h for how the work is divided.
#include "cpu/group_sums.h"
#include "cpu/linear_backward.h"
#include "cpu/weight_block.h"
#include "cpu/workspace.h"
#include "projection/cpu/launch.h"

namespace ck::CK_ISA {
namespace {

// The sizes of everything, in numbers of the accumulation type.
template <class T>
struct Plan {
    using A = Accumulator<T>;

    int64_t padded_channels;
    Blocks<A> panels, blocks;
    int64_t tile_panels, capacity, tiles;
    // Of a thread: x by rows, a block of grad_out by rows and by panels, converted weights, the gradient of
    // x.
    int64_t x_size, grad_size, weight_size, grad_x_size, thread_size;
    // Of a group of tokens: the gradients of weight and bias. Of each group of units: the gradient of x.
    int64_t grad_weight_size, weights_size, inputs_size;
    BackwardGroups groups;

    explicit Plan(const ProjectionShape& shape)
        : padded_channels(round_up(shape.channels, kLanes<A>)),
          panels(panels_of<A>(shape.samples * shape.tokens)),
          blocks(shape.out_channels, kUnitBlock) {
        tile_panels = kTilePanels;
        capacity = tile_panels * kPanelLanes<A>;
        tiles = ceil_div(panels.count, tile_panels);
        x_size = TokenRows<A>::size(capacity, shape.channels);
        grad_size = kUnitBlock * capacity;
        weight_size = weight_block_size<T>(kUnitBlock, shape.channels);
        grad_x_size = shape.channels * capacity;
        thread_size = x_size + 2 * grad_size + weight_size + grad_x_size;
        grad_weight_size = shape.out_channels * padded_channels;
        weights_size = grad_weight_size + round_up(shape.out_channels, kLanes<A>);
        inputs_size = panels.count * shape.channels * kPanelLanes<A>;
        groups = backward_groups(tiles, blocks.count, weights_size, inputs_size);
    }
};

template <class T>
void backward(const ProjectionBackward& params, int threads) {
    using A = Accumulator<T>;
    constexpr int64_t lanes = kPanelLanes<A>;
    const ProjectionShape& shape = params.shape;
    const int channels = shape.channels, out_channels = shape.out_channels;
    const Plan<T> plan(shape);
    const Blocks<A>&panels = plan.panels, &blocks = plan.blocks;
    const int64_t token_groups = plan.groups.token_groups, unit_groups = plan.groups.unit_groups;
    const int64_t waiting = unit_groups > 1 ? unit_groups * plan.inputs_size : 0;
    A* const weights = static_cast<A*>(
        workspace((token_groups * plan.weights_size + waiting + threads * plan.thread_size) * sizeof(A)));
    A* const inputs = weights + token_groups * plan.weights_size;
    A* const scratch = inputs + waiting;
    const TokenOutput<T> output{
        static_cast<T*>(params.grad_x), nullptr, nullptr, nullptr, shape.tokens, channels};

    parallel_for(threads, token_groups * unit_groups, [&](int64_t index, int thread) {
        const int64_t token_group = index / unit_groups, unit_group = index % unit_groups;
        A* const x_scratch = scratch + thread * plan.thread_size;
        A* const grad_scratch = x_scratch + plan.x_size;
        const Panel<A> grad_panels{grad_scratch + plan.grad_size, plan.capacity};
        A* const weight_scratch = grad_panels.data + plan.grad_size;
        A* const grad_x = weight_scratch + plan.weight_size;
        const TokenRows<A> x_rows(x_scratch, plan.capacity, channels);
        const Panel<A> grad_weight{weights + token_group * plan.weights_size, plan.padded_channels};
        A* const grad_bias = grad_weight.data + plan.grad_weight_size;

        for (int64_t tile = token_group * plan.tiles / token_groups;
             tile < (token_group + 1) * plan.tiles / token_groups; ++tile) {
            const bool add = tile > token_group * plan.tiles / token_groups;
            const int64_t first = tile * plan.tile_panels;
            const int64_t last =
                first + plan.tile_panels < panels.count ? first + plan.tile_panels : panels.count;
            const int64_t token = panels.begin(first), tokens = panels.begin(last) - token;
            const auto grad_x_panel = [&](int64_t panel) {
                A* const tile_panels = unit_groups > 1 ? inputs + unit_group * plan.inputs_size : grad_x;
                return Panel<A>{tile_panels + (unit_groups > 1 ? panel : panel - first) * channels * lanes,
                                lanes};
            };
            load_rows<A>(static_cast<const T*>(params.x), channels, token, tokens, nullptr, shape.tokens,
                         x_rows);
            const int64_t first_block = unit_group * blocks.count / unit_groups;
            for (int64_t block = first_block; block < (unit_group + 1) * blocks.count / unit_groups;
                 ++block) {
                const int64_t unit = blocks.begin(block);
                const int units = blocks.size(block);
                const TokenRows<A> grad_rows(grad_scratch, plan.capacity, units);
                load_rows(static_cast<const T*>(params.grad_out) + unit, out_channels, token, tokens,
                          static_cast<const A*>(params.sample_scale), shape.tokens, grad_rows);
                transpose_rows(grad_rows, 0, tokens, grad_panels);
                sum_rows(grad_rows, tokens, add, grad_bias + unit);
                weight_gradient(read_only(grad_panels), units, tokens, x_rows, add, grad_weight.from(unit));
                const auto weight = weight_block(static_cast<const T*>(params.weight) + unit * channels,
                                                 channels, units, channels, weight_scratch);
                for (int64_t panel = first; panel < last; ++panel) {
                    multiply(by_columns(weight.data, weight.stride), channels,
                             read_only(grad_panels.from_column(panels.begin(panel) - token)), units,
                             panels.vectors(panel), block > first_block, grad_x_panel(panel));
                }
            }
            if (unit_groups > 1) continue;
            for (int64_t panel = first; panel < last; ++panel) {
                store_tokens(grad_x_panel(panel), panels.begin(panel), panels.size(panel), 0, channels,
                             output);
            }
        }
    });

    if (unit_groups > 1) store_token_sums(panels, inputs, unit_groups, output, threads);
    constexpr int L = kLanes<A>;
    parallel_for(threads, ceil_div(out_channels, L), [&](int64_t index, int) {
        const int64_t unit = index * L;
        const int units = out_channels - unit < L ? static_cast<int>(out_channels - unit) : L;
        const A* const grad_weight = weights + unit * plan.padded_channels;
        const A* const grad_bias = weights + plan.grad_weight_size + unit;
        store_sums(Panel<const A>{grad_weight, plan.padded_channels}, token_groups, plan.weights_size, units,
                   channels, static_cast<T*>(params.grad_weight) + unit * channels, channels);
        store_sums(Panel<const A>{grad_bias, 0}, token_groups, plan.weights_size, 1, units,
                   static_cast<A*>(params.grad_bias) + unit, 0);
    });
}

}  // namespace

void projection_backward(const ProjectionBackward& params, DType dtype, int threads) {
    switch (dtype) {
        case DType::float32:
            return backward<float>(params, threads);
        case DType::float64:
            return backward<double>(params, threads);
        case DType::bfloat16:
            return backward<BFloat16>(params, threads);
        case DType::float16:
            return backward<Half>(params, threads);
    }
}

}  // namespace ck::CK_ISA
