// SPDX-License-Identifier: MIT
// What Python passes, as what kernels take: addresses, sizes and strides. The caller has checked them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "context_aggregation/params.h"
#include "deformable_attention/params.h"
#include "fused_mlp/params.h"
#include "local_aggregation/params.h"
#include "projection/params.h"

namespace ck::bindings {

// data_ptr() of a tensor; 0 for one that is not given.
using Pointer = std::uintptr_t;
// stride() of a tensor of four dimensions, whose last one is 1.
using Strides = std::array<int64_t, 4>;

inline void* pointer(Pointer address) { return reinterpret_cast<void*>(address); }

inline Tokens tokens(Pointer address, const Strides& strides) {
    return {pointer(address), strides[0], strides[1], strides[2]};
}

inline Image image(Pointer address, const Strides& strides) {
    return {pointer(address), strides[0], strides[1], strides[2]};
}

// (B, N, M, D), (H, W, kh, kw), scale.
inline ContextAggregationShape context_aggregation_shape(const std::array<int64_t, 4>& sizes,
                                                         const std::array<int, 4>& grid, double scale) {
    return {sizes[0], sizes[1], sizes[2], static_cast<int>(sizes[3]), grid[0], grid[1],
            grid[2],  grid[3],  scale};
}

// Height and width of every level in turn.
inline std::vector<Level> levels(const std::vector<int>& sizes) {
    std::vector<Level> levels;
    int start = 0;
    for (size_t i = 0; i + 1 < sizes.size(); i += 2) {
        levels.push_back({start, sizes[i], sizes[i + 1]});
        start += levels.back().pixels();
    }
    return levels;
}

// (B, S, Q, M, D, P).
inline DeformableAttentionShape deformable_attention_shape(const std::array<int64_t, 6>& sizes,
                                                           const std::vector<Level>& levels) {
    return {sizes[0],
            sizes[2],
            static_cast<int>(sizes[1]),
            static_cast<int>(sizes[3]),
            static_cast<int>(sizes[4]),
            static_cast<int>(sizes[5]),
            static_cast<int>(levels.size()),
            levels.data()};
}

// (B, H, W, C), (kh, kw).
inline LocalAggregationShape local_aggregation_shape(const std::array<int64_t, 4>& sizes,
                                                     const std::array<int, 2>& kernel) {
    return {sizes[0],
            static_cast<int>(sizes[1]),
            static_cast<int>(sizes[2]),
            static_cast<int>(sizes[3]),
            kernel[0],
            kernel[1]};
}

// (samples, tokens), (C, hidden, C_out).
inline FusedMlpShape fused_mlp_shape(const std::array<int64_t, 2>& tokens, const std::array<int, 3>& widths) {
    return {tokens[0], tokens[1], widths[0], widths[1], widths[2]};
}

// (samples, tokens), (C, C_out).
inline ProjectionShape projection_shape(const std::array<int64_t, 2>& tokens,
                                        const std::array<int, 2>& widths) {
    return {tokens[0], tokens[1], widths[0], widths[1]};
}

}  // namespace ck::bindings
