// SPDX-License-Identifier: MIT
#include "projection/cpu/launch.h"

namespace ck {

void projection_forward(const ProjectionForward& params, DType dtype, int threads) {
    CK_DISPATCH_ISA(projection_forward, params, dtype, threads)
}
void projection_backward(const ProjectionBackward& params, DType dtype, int threads) {
    CK_DISPATCH_ISA(projection_backward, params, dtype, threads)
}

}  // namespace ck
