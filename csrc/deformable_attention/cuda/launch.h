// SPDX-License-Identifier: MIT
// The CUDA kernels of float32, bfloat16 and float16; locations and weights are float32. They start on the
// stream and return. The gradient of value needs a workspace in device memory; a kernel never allocates.
//
// In the order in which a call meets them:
// clang-format off
//   problem.h                 what is refused; the levels as a parameter; the kernel of a dtype
//   point.h                   the four pixels around a location
//   query_groups.h            a group of lanes for a query, in 16 bytes a lane where they lie so
//   forward.cu                every group reads and adds up its points
//   backward_sampling.cu      the same, with four products for each point
//   query_boxes.cu            where the points of 32 queries lie, to skip them
//   backward_value.cu         a warp has a tile of pixels and looks for the points that meet it; tile_plan.h
// clang-format on
#pragma once

#include <cstddef>

#include "cuda/runtime.h"
#include "deformable_attention/params.h"

namespace ck::cuda {

// Levels are a parameter of the kernels, of fixed size.
constexpr int kMaxLevels = 16;
// A warp has all channels of a head.
constexpr int kMaxHeadDim = 256;

void deformable_attention_forward(const DeformableAttentionForward& params, DType dtype, Stream stream);

size_t deformable_attention_backward_value_workspace(const DeformableAttentionShape& shape);
void deformable_attention_backward_value(const DeformableAttentionBackwardValue& params, void* workspace,
                                         DType dtype, Stream stream);

void deformable_attention_backward_sampling(const DeformableAttentionBackwardSampling& params, DType dtype,
                                            Stream stream);

}  // namespace ck::cuda
