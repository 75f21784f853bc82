// SPDX-License-Identifier: MIT
#include "local_aggregation/cpu/kernels.h"

namespace ck {

void depthwise_forward(const DepthwiseForward& params, const ChannelStatistics& statistics, DType dtype,
                       int threads) {
    CK_DISPATCH_ISA(depthwise_forward, params, statistics, dtype, threads)
}
void depthwise_backward_weight(const DepthwiseBackwardWeight& params, DType dtype, int threads) {
    CK_DISPATCH_ISA(depthwise_backward_weight, params, dtype, threads)
}

}  // namespace ck
