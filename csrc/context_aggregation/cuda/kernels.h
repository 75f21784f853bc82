// SPDX-License-Identifier: MIT
// The CUDA kernels of float32, bfloat16 and float16, for head_dim up to 128, windows 3x3, 5x5 and 7x7 and as
// many tokens as fit a block's shared memory; there is no dense affinity (`affinity` is null). They start on
// the stream and return. What they need beyond their parameters is a workspace in device memory, of so many
// bytes as the function before tells (null for none); a kernel never allocates.
#pragma once

#include <cstddef>

#include "common/runtime.h"
#include "context_aggregation/params.h"

namespace ck::cuda {

// The bytes of shared memory that a block needs.
size_t mix_forward_shared_memory(const MixShape& shape, DType dtype);
void mix_forward(const MixForward& params, DType dtype, Stream stream);

size_t mix_backward_shared_memory(const MixShape& shape, DType dtype);
size_t mix_backward_workspace(const MixShape& shape, DType dtype, bool local_gradient);
// With `local` both of whose pointers are null, the gradients of the local weight and bias are not computed.
void mix_backward(const MixBackward& params, const LocalGradient& local, void* workspace, DType dtype,
                  Stream stream);

}  // namespace ck::cuda
