// SPDX-License-Identifier: MIT
// The CPU kernels, on at most `threads` threads; the result does not depend on their number.
#pragma once

#include "cpu/isa.h"
#include "local_aggregation/params.h"

namespace ck {

void local_aggregation_forward(const LocalAggregationForward& params, const ChannelStatistics& statistics,
                               DType dtype, int threads);
void local_aggregation_backward_weight(const LocalAggregationBackwardWeight& params, DType dtype,
                                       int threads);

CK_DECLARE_FOR_EACH_ISA(void local_aggregation_forward(const LocalAggregationForward& params,
                                                       const ChannelStatistics& statistics, DType dtype,
                                                       int threads))
CK_DECLARE_FOR_EACH_ISA(void local_aggregation_backward_weight(const LocalAggregationBackwardWeight& params,
                                                               DType dtype, int threads))

}  // namespace ck
