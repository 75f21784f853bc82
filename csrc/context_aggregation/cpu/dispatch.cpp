// SPDX-License-Identifier: MIT
#include "context_aggregation/cpu/kernels.h"

namespace ck {

void mix_forward(const MixForward& params, DType dtype, int threads) { CK_DISPATCH_ISA(mix_forward, params, dtype, threads) }
void mix_backward(const MixBackward& params, DType dtype, int threads) { CK_DISPATCH_ISA(mix_backward, params, dtype, threads) }

}  // namespace ck
