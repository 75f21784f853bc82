// SPDX-License-Identifier: MIT
// The small types of device code, the same on a GPU and emulated.
#pragma once

#include "common/types.h"

namespace ck {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct Float2 {
    float x, y;
};

// N elements that move as one; 16 bytes at most.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
    static_assert(sizeof(T) * N <= 16);
    T data[N];
};

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;
// What every GPU of compute capability 8.0 and up launches along the second and third axis of a grid.
constexpr unsigned kMaxBlocksYZ = 65535;

}  // namespace ck
