// SPDX-License-Identifier: MIT
// What the kernels refuse, what they have as a parameter, and from a dtype that is known when the program
// runs to the kernels compiled for it.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/device.h"
#include "deformable_attention/cuda/launch.h"

namespace ck::cuda {

// DeformableAttentionShape with the levels in it, for the device to read.
struct Problem {
    int64_t batch, queries;
    int pixels, heads, head_dim, points, level_count;
    Level levels[kMaxLevels];

    constexpr int points_of_query() const { return level_count * points; }
};

inline Problem problem_of(const DeformableAttentionShape& shape) {
    if (shape.level_count < 1 || shape.level_count > kMaxLevels) {
        throw std::invalid_argument("spatial_shapes: expected 1 to " + std::to_string(kMaxLevels) +
                                    " levels, got " + std::to_string(shape.level_count));
    }
    if (shape.head_dim < 1 || shape.head_dim > kMaxHeadDim) {
        throw std::invalid_argument("head_dim: expected 1 to " + std::to_string(kMaxHeadDim) + ", got " +
                                    std::to_string(shape.head_dim));
    }
    Problem problem{shape.batch,    shape.queries, shape.pixels,      shape.heads,
                    shape.head_dim, shape.points,  shape.level_count, {}};
    std::copy_n(shape.levels, shape.level_count, problem.levels);
    return problem;
}

// Blocks lie along x alone, along which there may be most of them.
inline unsigned grid_of(int64_t blocks) {
    if (blocks > INT32_MAX) {
        throw std::invalid_argument("sampling_locations: too large for one launch, " +
                                    std::to_string(blocks) + " blocks");
    }
    return static_cast<unsigned>(blocks);
}

inline bool is_multiple(const void* address, int bytes) {
    return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// x and y move together.
inline void check_locations(const void* locations) {
    if (!is_multiple(locations, 2 * sizeof(float))) {
        throw std::invalid_argument("sampling_locations: expected an address that is a multiple of 8 bytes");
    }
}

// Calls function.operator()<T>().
template <class Function>
void with_type(DType dtype, const Function& function) {
    switch (dtype) {
        case DType::float32:
            return function.template operator()<float>();
        case DType::bfloat16:
            return function.template operator()<BFloat16>();
        case DType::float16:
            return function.template operator()<Half>();
        case DType::float64:
            break;
    }
    throw std::invalid_argument("dtype: expected float32, bfloat16 or float16, got float64");
}

}  // namespace ck::cuda
