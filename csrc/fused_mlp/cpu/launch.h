// SPDX-License-Identifier: MIT
// The CPU kernels of the MLP, on at most `threads` threads; the result does not depend on their number.
#pragma once

#include "cpu/isa.h"
#include "fused_mlp/params.h"

namespace ck {

void fused_mlp_forward(const FusedMlpForward& params, DType dtype, int threads);
void fused_mlp_backward(const FusedMlpBackward& params, DType dtype, int threads);

CK_DECLARE_FOR_EACH_ISA(void fused_mlp_forward(const FusedMlpForward& params, DType dtype, int threads))
CK_DECLARE_FOR_EACH_ISA(void fused_mlp_backward(const FusedMlpBackward& params, DType dtype, int threads))

}  // namespace ck
