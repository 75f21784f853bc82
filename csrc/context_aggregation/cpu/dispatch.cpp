// SPDX-License-Identifier: MIT
#include "context_aggregation/cpu/launch.h"

namespace ck {

void context_aggregation_forward(const ContextAggregationForward& params, DType dtype, int threads) {
    CK_DISPATCH_ISA(context_aggregation_forward, params, dtype, threads)
}
void context_aggregation_backward(const ContextAggregationBackward& params, DType dtype, int threads) {
    CK_DISPATCH_ISA(context_aggregation_backward, params, dtype, threads)
}

}  // namespace ck
