// SPDX-License-Identifier: MIT
// The kernels of the largest window, with which smaller ones that have no kernel of their own are computed
// too, filled up with zeros.
#pragma once

#include <cstddef>

#include "common/windows.h"
#include "cuda/runtime.h"
#include "local_aggregation/params.h"

namespace ck::cuda {

size_t wide_forward_workspace(const LocalAggregationShape& shape);
template <class T>
void wide_forward(const LocalAggregationForward& params, const ChannelStatistics& statistics, void* workspace,
                  Stream stream);

size_t wide_backward_weight_workspace(const LocalAggregationShape& shape);
template <class T>
void wide_backward_weight(const LocalAggregationBackwardWeight& params, void* workspace, Stream stream);

}  // namespace ck::cuda
