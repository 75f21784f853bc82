// SPDX-License-Identifier: MIT
// Depthwise cross-correlation of a channels-last image with zero padding: the whole of the depthwise
// operation, and the local term of the mix.
#pragma once

#include "common/types.h"

namespace ck::CK_ISA {

// Pixels of a row that kernels work on together; 7 divides the usual widths 7, 14, 28, 56.
constexpr int kColumns = 7;

// In the place of a window's width that kernels are compiled for: any.
constexpr int kAnyWidth = 0;

// Calls function(Constant<width of a piece>{}, first column, how far that is left of the window's middle) for
// the whole window or, for kAnyWidth, for every piece of one `width` columns wide: of seven as long as there
// are so many, then of three and one.
template <int Width, class Function>
CK_INLINE void for_each_piece(int width, const Function& function) {
    if constexpr (Width != kAnyWidth) {
        function(Constant<Width>{}, 0, Width / 2);  // numbers that the compiler sees
    } else {
        int first = 0;
        for (; first + 7 <= width; first += 7) function(Constant<7>{}, first, width / 2 - first);
        for (; first + 3 <= width; first += 3) function(Constant<3>{}, first, width / 2 - first);
        for (; first < width; ++first) function(Constant<1>{}, first, width / 2 - first);
    }
}

template <class T>
struct Window {
    const T* image;
    int64_t row_stride, column_stride;
    int height, width, channels;
    int kernel_height, kernel_width;
    // (kernel_height * kernel_width, weight_stride): channels next to each other, unlike the public layout.
    const Accumulator<T>* weight;
    int64_t weight_stride;
    const Accumulator<T>* bias;  // (channels,) or null
};

// Packs `channels` rows of (channels, taps) into the layout of Window::weight, padded to whole vectors;
// flipped by 180 degrees for the transposed operation.
template <class A>
void pack_window_weight(const A* weight, int channels, int taps, bool flipped, A* target,
                        int64_t target_stride);

// out = sums + bias + window for the pixels begin … end - 1, counted row by row; `sums` (null: 0) and `out`
// start at pixel `begin`.
template <class T>
void window_pixels(const Window<T>& window, int64_t begin, int64_t end, const Accumulator<T>* sums,
                   int64_t sums_stride, T* out, int64_t out_stride);

}  // namespace ck::CK_ISA
