// SPDX-License-Identifier: MIT
#include "fused_mlp/cpu/launch.h"

namespace ck {

void fused_mlp_forward(const FusedMlpForward& params, DType dtype, int threads) {
    CK_DISPATCH_ISA(fused_mlp_forward, params, dtype, threads)
}
void fused_mlp_backward(const FusedMlpBackward& params, DType dtype, int threads) {
    CK_DISPATCH_ISA(fused_mlp_backward, params, dtype, threads)
}

}  // namespace ck
