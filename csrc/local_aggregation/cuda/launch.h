// SPDX-License-Identifier: MIT
// The CUDA kernels of float32, bfloat16 and float16, for kSquareWindows. They start on the stream
// and return. What they need beyond their parameters is a workspace in device memory, of so many bytes as the
// function before tells (null for none); a kernel never allocates.
//
// In the order in which a call meets them:
// clang-format off
//   tiling.h, dispatch.h               how images are divided among warps; the kernel of a dtype and a window
//   forward.cu, backward_weight.cu     the kernels; rows.h moves rows between global and shared memory
//   wide.cu                            the same for kWideWindow
//   statistics.h, partials.cu          statistics of a block; sums over blocks in a fixed order
// clang-format on
#pragma once

#include <cstddef>

#include "cuda/runtime.h"
#include "local_aggregation/params.h"

namespace ck::cuda {

// With `statistics` both of whose pointers are null, none are computed.
size_t local_aggregation_forward_workspace(const LocalAggregationShape& shape, DType dtype, bool statistics);
void local_aggregation_forward(const LocalAggregationForward& params, const ChannelStatistics& statistics,
                               void* workspace, DType dtype, Stream stream);

size_t local_aggregation_backward_weight_workspace(const LocalAggregationShape& shape, DType dtype);
void local_aggregation_backward_weight(const LocalAggregationBackwardWeight& params, void* workspace,
                                       DType dtype, Stream stream);

}  // namespace ck::cuda
