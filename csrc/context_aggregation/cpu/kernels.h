// SPDX-License-Identifier: MIT
// The CPU kernels, on at most `threads` threads; the result does not depend on their number.
#pragma once

#include "cpu/isa.h"
#include "context_aggregation/params.h"

namespace ck {

void mix_forward(const MixForward& params, DType dtype, int threads);
void mix_backward(const MixBackward& params, DType dtype, int threads);

CK_DECLARE_FOR_EACH_ISA(void mix_forward(const MixForward& params, DType dtype, int threads))
CK_DECLARE_FOR_EACH_ISA(void mix_backward(const MixBackward& params, DType dtype, int threads))

}  // namespace ck
