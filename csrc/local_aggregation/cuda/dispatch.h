// SPDX-License-Identifier: MIT
// From a dtype and a window that are known when the program runs to kernels compiled for them.
#pragma once

#include <stdexcept>

#include "common/windows.h"
#include "local_aggregation/params.h"

namespace ck::cuda {

// Calls function.operator()<T, K>().
template <class T, class Function>
void with_window(const LocalAggregationShape& shape, const Function& function) {
    check_square_window(shape.kernel_height, shape.kernel_width);
    static_assert(kSquareWindows.size() == 4, "a case for every window");
    switch (shape.kernel_height) {
        case 3:
            return function.template operator()<T, 3>();
        case 5:
            return function.template operator()<T, 5>();
        case 7:
            return function.template operator()<T, 7>();
        case kWideWindow:
            return function.template operator()<T, kWideWindow>();
    }
    throw std::logic_error("window: kSquareWindows has one without a case here");
}

template <class Function>
void with_type_and_window(DType dtype, const LocalAggregationShape& shape, const Function& function) {
    switch (dtype) {
        case DType::float32:
            return with_window<float>(shape, function);
        case DType::bfloat16:
            return with_window<BFloat16>(shape, function);
        case DType::float16:
            return with_window<Half>(shape, function);
        case DType::float64:
            break;
    }
    throw std::invalid_argument("dtype: expected float32, bfloat16 or float16, got float64");
}

}  // namespace ck::cuda
