// SPDX-License-Identifier: MIT
// The windows of depthwise operations.
#pragma once

#include <array>

namespace ck {

// The largest height and width of a window.
constexpr int kMaxWindow = 11;

// The square windows that CUDA kernels are compiled for; others are filled up with zeros to the next of them. The last
// one's weights are too many for registers: its kernels are right, those of the others also fast.
constexpr int kWideWindow = kMaxWindow;
constexpr std::array kSquareWindows = {3, 5, 7, kWideWindow};

constexpr bool is_square_window(int height, int width) {
    for (int size : kSquareWindows) {
        if (height == size && width == size) return true;
    }
    return false;
}

}  // namespace ck
