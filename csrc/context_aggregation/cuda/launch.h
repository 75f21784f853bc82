// SPDX-License-Identifier: MIT
// The CUDA kernels of float32, bfloat16 and float16, for head_dim up to 128, windows 3x3, 5x5 and 7x7 and as
// many tokens as fit a block's shared memory; there is no dense affinity (`affinity` is null). They start on
// the stream and return. What they need beyond their parameters is a workspace in device memory, of so many
// bytes as the function before tells (null for none); a kernel never allocates.
#pragma once

#include <cstddef>

#include "context_aggregation/params.h"
#include "cuda/runtime.h"

namespace ck::cuda {

// The bytes of shared memory that a block needs.
size_t context_aggregation_forward_shared_memory(const ContextAggregationShape& shape, DType dtype);
void context_aggregation_forward(const ContextAggregationForward& params, DType dtype, Stream stream);

size_t context_aggregation_backward_shared_memory(const ContextAggregationShape& shape, DType dtype);
size_t context_aggregation_backward_workspace(const ContextAggregationShape& shape, DType dtype,
                                              bool local_gradient);
// With `local` both of whose pointers are null, the gradients of the local weight and bias are not computed.
void context_aggregation_backward(const ContextAggregationBackward& params, const LocalGradient& local,
                                  void* workspace, DType dtype, Stream stream);

}  // namespace ck::cuda
