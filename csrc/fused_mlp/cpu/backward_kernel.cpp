// SPDX-License-Identifier: MIT
// Backward of the MLP. A task computes a block of hidden units again for a tile of tokens, and from it and
// its gradient, while they are in the cache, all that they contribute to the gradients. See
// cpu/linear_backward.h for how the work is divided.
#include "cpu/gelu.h"
#include "cpu/group_sums.h"
#include "cpu/linear_backward.h"
#include "cpu/weight_block.h"
#include "cpu/workspace.h"
#include "fused_mlp/cpu/launch.h"

namespace ck::CK_ISA {
namespace {

// Bytes of a tile's tensors: most of the second-level cache.
constexpr int64_t kTileBytes = 640 << 10;

// The sizes of everything, in numbers of the accumulation type.
template <class T>
struct Plan {
    using A = Accumulator<T>;

    int64_t padded_channels, padded_out_channels;
    Blocks<A> panels, blocks;
    int64_t tile_panels, capacity, tiles;
    BackwardGroups groups;

    // Of a thread: x and grad_out by rows and by panels, the hidden block and its gradient, converted
    // weights.
    int64_t x_size, grad_size, hidden_size, w1_size, w2_size, grad_x_size, thread_size;
    // Of a group of tokens: the gradients of w1, w2 (transposed), b1, b2.
    int64_t grad_w1_size, grad_w2_size, grad_b1_size, weights_size;
    // Of each group of units: the gradient of x.
    int64_t panel_size, inputs_size;

    explicit Plan(const FusedMlpShape& shape)
        : padded_channels(round_up(shape.channels, kLanes<A>)),
          padded_out_channels(round_up(shape.out_channels, kLanes<A>)),
          panels(panels_of<A>(shape.samples * shape.tokens)),
          blocks(shape.hidden, kUnitBlock) {
        const int64_t panel_bytes =
            (3 * padded_channels + 2 * padded_out_channels) * kPanelLanes<A> * sizeof(A);
        const int64_t fitting = kTileBytes / panel_bytes;
        tile_panels = fitting < 1 ? 1 : fitting < kTilePanels ? fitting : kTilePanels;
        capacity = tile_panels * kPanelLanes<A>;
        tiles = ceil_div(panels.count, tile_panels);

        x_size = padded_channels * capacity;
        grad_size = padded_out_channels * capacity;
        hidden_size = kUnitBlock * capacity;
        w1_size = weight_block_size<T>(kUnitBlock, shape.channels);
        w2_size = weight_block_size<T>(shape.out_channels, kUnitBlock);
        grad_x_size = shape.channels * capacity;
        thread_size = 2 * x_size + 2 * grad_size + 2 * hidden_size + w1_size + w2_size + grad_x_size;

        grad_w1_size = shape.hidden * padded_channels;
        grad_w2_size = shape.hidden * padded_out_channels;
        grad_b1_size = round_up(shape.hidden, kLanes<A>);
        weights_size = grad_w1_size + grad_w2_size + grad_b1_size + padded_out_channels;
        panel_size = shape.channels * kPanelLanes<A>;
        inputs_size = panels.count * panel_size;
        groups = backward_groups(tiles, blocks.count, weights_size, inputs_size);
    }
};

// Given hidden without its bias and the gradient after the activation: hidden becomes what the second layer
// saw, and grad the gradient before the activation.
template <class T>
void differentiate(Panel<Accumulator<T>> hidden, Panel<Accumulator<T>> grad, int64_t units, int64_t tokens,
                   const Accumulator<T>* bias) {
    using V = Vec<Accumulator<T>>;
    for (int64_t unit = 0; unit < units; ++unit) {
        for (int64_t token = 0; token < tokens; token += kLanesOf<V>) {
            Accumulator<T>* const place = hidden.from(unit).data + token;
            Accumulator<T>* const grad_place = grad.from(unit).data + token;
            const V x = load<V>(place) + bias[unit];
            store(place, rounded<T>(gelu(x)));
            store(grad_place, load<V>(grad_place) * gelu_derivative(x));
        }
    }
}

template <class T>
void backward(const FusedMlpBackward& params, int threads) {
    using A = Accumulator<T>;
    constexpr int64_t lanes = kPanelLanes<A>;
    const FusedMlpShape& shape = params.shape;
    const int channels = shape.channels, hidden = shape.hidden, out_channels = shape.out_channels;
    const Plan<T> plan(shape);
    const Blocks<A>&panels = plan.panels, &blocks = plan.blocks;
    const int64_t token_groups = plan.groups.token_groups, unit_groups = plan.groups.unit_groups;
    const int64_t waiting = unit_groups > 1 ? unit_groups * plan.inputs_size : 0;
    A* const weights = static_cast<A*>(
        workspace((token_groups * plan.weights_size + waiting + threads * plan.thread_size) * sizeof(A)));
    A* const inputs = weights + token_groups * plan.weights_size;
    A* const scratch = inputs + waiting;
    const TokenOutput<T> output{static_cast<T*>(params.grad_x),
                                params.residual ? static_cast<const T*>(params.grad_out) : nullptr,
                                nullptr,
                                nullptr,
                                shape.tokens,
                                channels};

    parallel_for(threads, token_groups * unit_groups, [&](int64_t index, int thread) {
        const int64_t token_group = index / unit_groups, unit_group = index % unit_groups;
        A* next = scratch + thread * plan.thread_size;
        const auto take = [&](int64_t size) {
            A* const taken = next;
            next += size;
            return taken;
        };
        const TokenRows<A> x_rows(take(plan.x_size), plan.capacity, channels);
        const TokenRows<A> grad_rows(take(plan.grad_size), plan.capacity, out_channels);
        A* const x_panels = take(plan.x_size);
        A* const grad_panels = take(plan.grad_size);
        const Panel<A> h{take(plan.hidden_size), plan.capacity},
            grad_h{take(plan.hidden_size), plan.capacity};
        A* const w1_scratch = take(plan.w1_size);
        A* const w2_scratch = take(plan.w2_size);
        A* const grad_x = take(plan.grad_x_size);
        const Panel<A> grad_w1{weights + token_group * plan.weights_size, plan.padded_channels};
        const Panel<A> grad_w2{grad_w1.data + plan.grad_w1_size, plan.padded_out_channels};
        A* const grad_b1 = grad_w2.data + plan.grad_w2_size;
        A* const grad_b2 = grad_b1 + plan.grad_b1_size;

        const int64_t first_tile = token_group * plan.tiles / token_groups;
        const int64_t last_tile = (token_group + 1) * plan.tiles / token_groups;
        const int64_t first_block = unit_group * blocks.count / unit_groups;
        const int64_t last_block = (unit_group + 1) * blocks.count / unit_groups;
        for (int64_t tile = first_tile; tile < last_tile; ++tile) {
            const bool add = tile > first_tile;
            const int64_t first = tile * plan.tile_panels;
            const int64_t last =
                first + plan.tile_panels < panels.count ? first + plan.tile_panels : panels.count;
            const int64_t token = panels.begin(first), tokens = panels.begin(last) - token;
            const auto x_panel = [&](int64_t panel) {
                return Panel<A>{x_panels + (panel - first) * plan.padded_channels * lanes, lanes};
            };
            const auto grad_panel = [&](int64_t panel) {
                return Panel<A>{grad_panels + (panel - first) * plan.padded_out_channels * lanes, lanes};
            };
            const auto grad_x_panel = [&](int64_t panel) {
                return Panel<A>{unit_groups > 1
                                    ? inputs + unit_group * plan.inputs_size + panel * plan.panel_size
                                    : grad_x + (panel - first) * plan.panel_size,
                                lanes};
            };
            load_rows<A>(static_cast<const T*>(params.x), channels, token, tokens, nullptr, shape.tokens,
                         x_rows);
            load_rows(static_cast<const T*>(params.grad_out), out_channels, token, tokens,
                      static_cast<const A*>(params.sample_scale), shape.tokens, grad_rows);
            for (int64_t panel = first; panel < last; ++panel) {
                const int64_t begin = panels.begin(panel) - token;
                transpose_rows(x_rows, begin, panels.size(panel), x_panel(panel));
                transpose_rows(grad_rows, begin, panels.size(panel), grad_panel(panel));
            }
            if (unit_group == 0) sum_rows(grad_rows, tokens, add, grad_b2);
            for (int64_t block = first_block; block < last_block; ++block) {
                const int64_t unit = blocks.begin(block);
                const int units = blocks.size(block);
                const auto w1 = weight_block(static_cast<const T*>(params.w1) + unit * channels, channels,
                                             units, channels, w1_scratch);
                const auto w2 = weight_block(static_cast<const T*>(params.w2) + unit, hidden, out_channels,
                                             units, w2_scratch);
                for (int64_t panel = first; panel < last; ++panel) {
                    const int64_t begin = panels.begin(panel) - token;
                    multiply(by_rows(w1.data, w1.stride), units, read_only(x_panel(panel)), channels,
                             panels.vectors(panel), false, h.from_column(begin));
                    multiply(by_columns(w2.data, w2.stride), units, read_only(grad_panel(panel)),
                             out_channels, panels.vectors(panel), false, grad_h.from_column(begin));
                }
                differentiate<T>(h, grad_h, units, tokens, static_cast<const A*>(params.b1) + unit);
                weight_gradient(read_only(grad_h), units, tokens, x_rows, add, grad_w1.from(unit));
                weight_gradient(read_only(h), units, tokens, grad_rows, add, grad_w2.from(unit));
                sum_tokens(read_only(grad_h), units, tokens, add, grad_b1 + unit);
                for (int64_t panel = first; panel < last; ++panel) {
                    multiply(by_columns(w1.data, w1.stride), channels,
                             read_only(grad_h.from_column(panels.begin(panel) - token)), units,
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
    parallel_for(threads, ceil_div(hidden, L), [&](int64_t index, int) {
        const int64_t unit = index * L;
        const int units = hidden - unit < L ? static_cast<int>(hidden - unit) : L;
        const A* const grad_w1 = weights + unit * plan.padded_channels;
        const A* const grad_w2 = weights + plan.grad_w1_size + unit * plan.padded_out_channels;
        const A* const grad_b1 = weights + plan.grad_w1_size + plan.grad_w2_size + unit;
        store_sums(Panel<const A>{grad_w1, plan.padded_channels}, token_groups, plan.weights_size, units,
                   channels, static_cast<T*>(params.grad_w1) + unit * channels, channels);
        store_sums_transposed(Panel<const A>{grad_w2, plan.padded_out_channels}, token_groups,
                              plan.weights_size, units, out_channels, static_cast<T*>(params.grad_w2) + unit,
                              hidden);
        store_sums(Panel<const A>{grad_b1, 0}, token_groups, plan.weights_size, 1, units,
                   static_cast<A*>(params.grad_b1) + unit, 0);
    });
    const A* const grad_b2 = weights + plan.grad_w1_size + plan.grad_w2_size + plan.grad_b1_size;
    store_sums(Panel<const A>{grad_b2, 0}, token_groups, plan.weights_size, 1, out_channels,
               static_cast<A*>(params.grad_b2), 0);
}

}  // namespace

void fused_mlp_backward(const FusedMlpBackward& params, DType dtype, int threads) {
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
