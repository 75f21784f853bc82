// SPDX-License-Identifier: MIT
// The CUDA kernels of float32, bfloat16 and float16, for kSquareWindows. They start on the stream
// and return. What they need beyond their parameters is a workspace in device memory, of so many bytes as the
// function before tells (null for none); a kernel never allocates.
#pragma once

#include <cstddef>

#include "common/runtime.h"
#include "local_aggregation/params.h"

namespace ck::cuda {

// With `statistics` both of whose pointers are null, none are computed.
size_t depthwise_forward_workspace(const DepthwiseShape& shape, DType dtype, bool statistics);
void depthwise_forward(const DepthwiseForward& params, const ChannelStatistics& statistics, void* workspace,
                       DType dtype, Stream stream);

size_t depthwise_backward_weight_workspace(const DepthwiseShape& shape, DType dtype);
void depthwise_backward_weight(const DepthwiseBackwardWeight& params, void* workspace, DType dtype,
                               Stream stream);

}  // namespace ck::cuda
