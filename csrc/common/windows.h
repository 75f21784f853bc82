// SPDX-License-Identifier: MIT
// The windows of depthwise operations.
#pragma once

#include <array>
#include <stdexcept>
#include <string>

namespace ck {

// The square windows that CUDA kernels are compiled for; others are filled up with zeros to the next of them.
// The last one's weights are too many for registers: its kernels are right, those of the others also fast.
constexpr int kWideWindow = 11;
constexpr std::array kSquareWindows = {3, 5, 7, kWideWindow};

// An exception that says what came unless there are kernels for the window.
inline void check_square_window(int height, int width) {
    std::string known;
    for (int size : kSquareWindows) {
        if (height == size && width == size) return;
        known += (known.empty() ? "" : ", ") + std::to_string(size) + "x" + std::to_string(size);
    }
    throw std::invalid_argument("window: expected one of " + known + ", got " + std::to_string(height) + "x" +
                                std::to_string(width));
}

}  // namespace ck
