// SPDX-License-Identifier: MIT
#include "local_aggregation/cpu/launch.h"

namespace ck {

void local_aggregation_forward(const LocalAggregationForward& params, const ChannelStatistics& statistics,
                               DType dtype, int threads) {
    CK_DISPATCH_ISA(local_aggregation_forward, params, statistics, dtype, threads)
}
void local_aggregation_backward_weight(const LocalAggregationBackwardWeight& params, DType dtype,
                                       int threads) {
    CK_DISPATCH_ISA(local_aggregation_backward_weight, params, dtype, threads)
}

}  // namespace ck
