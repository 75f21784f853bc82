// SPDX-License-Identifier: MIT
// The CUDA kernels of float32, bfloat16 and float16, for head_dim up to 128, kSquareWindows and as many
// tokens as fit a block's shared memory; there is no dense affinity (`affinity` is null). They start on the
// stream and return. What they need beyond their parameters is a workspace in device memory, of so many bytes
// as the function before tells (null for none); a kernel never allocates.
//
// In the order in which a call meets them:
// clang-format off
//   forward.cu                         choice of the kernel, of threads and shared memory
//   forward_tensor_core.cu, forward_float32.cu    the kernels: attention of a chunk of queries
//   forward_block.h                    one block: its head, where that lies in shared memory (tile.h)
//   forward_output.h                   the local term (window.h), rounding, writing
//   backward.cu                        workspace, launch, and the sum over images of the local gradients
//   backward_kernel.h                  the kernel: P, dS, dq, dk, dv (products: backward_mma.h, backward_fma.h)
//   backward_local.h                   gradients of the local weight and bias per image, dv of the local term
// clang-format on
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
