// SPDX-License-Identifier: MIT
// The CPU kernels, on at most `threads` threads; the result does not depend on their number.
#pragma once

#include "context_aggregation/params.h"
#include "cpu/isa.h"

namespace ck {

void context_aggregation_forward(const ContextAggregationForward& params, DType dtype, int threads);
void context_aggregation_backward(const ContextAggregationBackward& params, DType dtype, int threads);

CK_DECLARE_FOR_EACH_ISA(void context_aggregation_forward(const ContextAggregationForward& params, DType dtype,
                                                         int threads))
CK_DECLARE_FOR_EACH_ISA(void context_aggregation_backward(const ContextAggregationBackward& params,
                                                          DType dtype, int threads))

}  // namespace ck
