// SPDX-License-Identifier: MIT
// The CPU kernels of the MLP, on at most `threads` threads; the result does not depend on their number.
#pragma once

#include "cpu/isa.h"
#include "fused_mlp/params.h"

namespace ck {

void mlp_forward(const MlpForward& params, DType dtype, int threads);
void mlp_backward(const MlpBackward& params, DType dtype, int threads);

CK_DECLARE_FOR_EACH_ISA(void mlp_forward(const MlpForward& params, DType dtype, int threads))
CK_DECLARE_FOR_EACH_ISA(void mlp_backward(const MlpBackward& params, DType dtype, int threads))

}  // namespace ck
