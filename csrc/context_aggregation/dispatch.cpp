// SPDX-License-Identifier: MIT
#include "context_aggregation/params.h"

namespace ck {

void mix_forward(const MixForward& params, DType dtype) { CK_DISPATCH_ISA(mix_forward, params, dtype) }
void mix_backward(const MixBackward& params, DType dtype) { CK_DISPATCH_ISA(mix_backward, params, dtype) }

}  // namespace ck
