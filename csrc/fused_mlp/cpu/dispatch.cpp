// SPDX-License-Identifier: MIT
#include "fused_mlp/cpu/kernels.h"

namespace ck {

void mlp_forward(const MlpForward& params, DType dtype, int threads) { CK_DISPATCH_ISA(mlp_forward, params, dtype, threads) }
void mlp_backward(const MlpBackward& params, DType dtype, int threads) { CK_DISPATCH_ISA(mlp_backward, params, dtype, threads) }

}  // namespace ck
