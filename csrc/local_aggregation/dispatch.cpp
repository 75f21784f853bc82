// SPDX-License-Identifier: MIT
#include "local_aggregation/params.h"

namespace ck {

void depthwise_forward(const DepthwiseForward& params, DType dtype) {
    CK_DISPATCH_ISA(depthwise_forward, params, dtype)
}
void depthwise_backward_weight(const DepthwiseBackwardWeight& params, DType dtype) {
    CK_DISPATCH_ISA(depthwise_backward_weight, params, dtype)
}

}  // namespace ck
