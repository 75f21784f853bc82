// SPDX-License-Identifier: MIT
// The CPU kernels of the projection, on at most `threads` threads; the result does not depend on their
// number.
#pragma once

#include "cpu/isa.h"
#include "projection/params.h"

namespace ck {

void projection_forward(const ProjectionForward& params, DType dtype, int threads);
void projection_backward(const ProjectionBackward& params, DType dtype, int threads);

CK_DECLARE_FOR_EACH_ISA(void projection_forward(const ProjectionForward& params, DType dtype, int threads))
CK_DECLARE_FOR_EACH_ISA(void projection_backward(const ProjectionBackward& params, DType dtype, int threads))

}  // namespace ck
