// SPDX-License-Identifier: MIT
// The device runtime: the one vocabulary that .cu files are written in. nvcc gives it its GPU half, any other
// compiler the emulated half, which runs a block's threads as fibers, so that the same kernels run in tests
// without a GPU and mistakes that a GPU would hide are reported (csrc/cuda_emulator).
//
// Rules for .cu files: no <<<>>>, no CUDA builtins, no inline PTX, no CUDA headers; only what is here.
//
//   CK_KERNEL(threads[, blocks_per_sm]) name(args)   a kernel; a block has one dimension, a grid up to three
//   CK_DEVICE                                        a function that kernels call
//   CK_DYNAMIC_SHARED(name)                          unsigned char* to the launch's shared memory
//   CK_SHARED(T, name, count)                        T* to shared memory of fixed size
//   CK_UNROLL                                        in front of a loop: unroll it
//   CK_NO_UNROLL                                     never, where the compiler would and registers are short
//
//   launch<kernel<...>>(grid, threads, shared_bytes, stream, args...)
//       from host code; arguments become the types of the parameters; throws what goes wrong
//
//   thread_index() lane() warp() block_size() block_index() grid_size()
//   sync_threads() sync_warp(mask)
//       barriers
//   shuffle(value, lane) shuffle_xor shuffle_down, with mask
//       4-byte values, all lanes of mask take part
//   any_lane(condition)
//       whether it holds in any lane of the warp; all lanes take part
//   lanes_where(condition)
//       the lanes of the warp in which it holds, bit i for lane i; all lanes take part
//   count_bits(bits) lowest_bit(bits)
//       how many bits are set, and the index of the lowest of them, where one is
//   atomic_add(address, value)
//       float, int32_t; returns the old value
//   load<N>(address) store(address, vec)
//       N elements at once, aligned to their size
//   copy_async<bytes>(shared, global, valid) copy_async_commit() copy_async_wait<groups>()
//       cp.async; the addresses are aligned, also where it is not valid and writes zeros
//   load_matrix<count>(registers, row) load_matrix_transposed<count>
//       ldmatrix
//   multiply_add<T>(d, a, b)
//       mma.sync m16n8k16, T bfloat16 or float16
//   exp2_approx log2_approx
//       of a float, a few units in the last place
//   minimum(a, b)
//       of floats; NaN where one of them is, unlike fminf
//   to_float from_float<T> unpack<T> pack<T>
//       conversions, rounded to nearest even
//
// The initial value of shared memory is undefined; emulated, it is NaN.
#pragma once

#include "cuda/device_types.h"
#include "cuda/runtime.h"

#if defined(__CUDACC__)
#include "cuda/device_nvcc.h"
#else
#include "cuda_emulator/device_emulated.h"
#endif

namespace ck {

// Elements of a 16-byte access.
template <class T>
constexpr int kVector = 16 / sizeof(T);

// Unsigned on the way: what is divided further needs no care for signs.
CK_DEVICE int lane() { return static_cast<unsigned>(thread_index()) % kWarpSize; }
CK_DEVICE int warp() { return static_cast<unsigned>(thread_index()) / kWarpSize; }

CK_DEVICE float to_float(float value) { return value; }

template <class T>
CK_DEVICE T from_float(float value) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return value;
    } else {
        return {static_cast<uint16_t>(pack<T>(value, 0.f) & 0xffff)};
    }
}

// The sum over the warp, in every lane; the order of the additions is fixed.
CK_DEVICE float warp_sum(float value) {
    CK_UNROLL
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
    return value;
}

}  // namespace ck
