// SPDX-License-Identifier: MIT
// The backward of the mix: how much memory it takes, and the sums over the batch that follow the heads.
#include <algorithm>

#include "context_aggregation/cuda/backward.h"
#include "context_aggregation/cuda/launch.h"
#include "cuda/device.h"

namespace ck::cuda {
namespace {

constexpr int kGroups = 8;  // of images, a warp each

struct BatchSum {
    const float* partials;  // (images, columns), see partial_columns
    int64_t images, columns;
    int64_t heads;
    int head_dim;
    int sums_per_channel;  // the taps and the bias
    float* alpha;
    float *local_weight, *local_bias;
};

// A lane owns a column. In double, and in an order that depends on nothing but the shape.
CK_KERNEL(kGroups* kWarpSize)
sum_over_batch(const BatchSum arguments) {
    CK_SHARED(double, sums, kGroups* kWarpSize);
    const int64_t column = int64_t{block_index().x} * kWarpSize + lane();
    double sum = 0;
    if (column < arguments.columns) {
        for (int64_t image = warp(); image < arguments.images; image += kGroups) {
            sum += arguments.partials[image * arguments.columns + column];
        }
    }
    sums[thread_index()] = sum;
    sync_threads();
    if (warp() > 0 || column >= arguments.columns) return;
    for (int group = 1; group < kGroups; ++group) sum += sums[group * kWarpSize + lane()];

    if (column < arguments.heads) {
        arguments.alpha[column] = static_cast<float>(sum);
        return;
    }
    const int taps = arguments.sums_per_channel - 1, head_dim = arguments.head_dim;
    const int64_t row = (column - arguments.heads) / head_dim;  // of (heads, taps + 1)
    const int tap = static_cast<int>(row % arguments.sums_per_channel);
    const int64_t channel =
        row / arguments.sums_per_channel * head_dim + (column - arguments.heads) % head_dim;
    if (tap < taps) {
        arguments.local_weight[channel * taps + tap] = static_cast<float>(sum);
    } else {
        arguments.local_bias[channel] = static_cast<float>(sum);
    }
}

int element_bytes(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

}  // namespace

size_t context_aggregation_backward_shared_memory(const ContextAggregationShape& shape, DType dtype) {
    check(shape);
    return backward_shared_memory(shape, element_bytes(dtype));
}

size_t context_aggregation_backward_workspace(const ContextAggregationShape& shape, DType,
                                              bool local_gradient) {
    return shape.batch * partial_columns(shape, local_gradient) * sizeof(float);
}

void context_aggregation_backward(const ContextAggregationBackward& params, const LocalGradient& local,
                                  void* workspace, DType dtype, Stream stream) {
    const ContextAggregationShape& shape = params.shape;
    check(shape);
    const auto access = [&](const auto&... tokens) {
        return std::min({row_access(tokens, shape, element_bytes(dtype))...});
    };
    const BackwardArguments arguments{params,
                                      local,
                                      static_cast<float*>(workspace),
                                      access(params.q, params.k, params.v, params.grad_out),
                                      access(params.grad_q, params.grad_k, params.grad_v),
                                      static_cast<float>(shape.scale),
                                      static_cast<float>(shape.scale * kLog2E<double>)};
    switch (dtype) {
        case DType::bfloat16:
            backward_bfloat16(arguments, stream);
            break;
        case DType::float16:
            backward_float16(arguments, stream);
            break;
        case DType::float32:
            backward_float32(arguments, stream);
            break;
        case DType::float64:
            throw std::invalid_argument("dtype: expected float32, bfloat16 or float16, got float64");
    }
    const int64_t columns = partial_columns(shape, local.weight);
    const BatchSum sum{arguments.partials,
                       shape.batch,
                       columns,
                       shape.heads,
                       shape.head_dim,
                       arguments.taps() + 1,
                       static_cast<float*>(params.grad_alpha),
                       static_cast<float*>(local.weight),
                       static_cast<float*>(local.bias)};
    launch<sum_over_batch>(Dim3{static_cast<unsigned>(ceil_div(columns, kWarpSize))}, kGroups * kWarpSize, 0,
                           stream, sum);
}

}  // namespace ck::cuda
