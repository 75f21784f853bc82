// SPDX-License-Identifier: MIT
// The GPU half of cuda/device.h.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <tuple>

#define CK_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define CK_DEVICE __device__ __forceinline__
#define CK_UNROLL _Pragma("unroll")
#define CK_NO_UNROLL _Pragma("unroll 1")
#define CK_DYNAMIC_SHARED(name)                                         \
    extern __shared__ __align__(128) unsigned char ck_dynamic_shared[]; \
    unsigned char* const name = ck_dynamic_shared
#define CK_SHARED(T, name, count) __shared__ __align__(16) T name[count]

namespace ck {

inline void check_cuda(cudaError_t status, const char* call) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
    }
}

// What one kernel may have of a device's shared memory, beyond the 48 KiB that it has without asking. Neither
// limit is an operation of a stream: both can be raised while a graph is captured.
class SharedMemoryLimits {
  public:
    // For the current device; once is enough, also by several threads at the same time.
    void raise(const void* kernel);

  private:
    static constexpr int kNotedDevices = 64;  // any further one is asked each time
    std::atomic<bool> raised_[kNotedDevices]{};
};

template <auto Kernel, class... Args>
void launch(Dim3 grid, int threads, size_t shared_bytes, Stream stream, const Args&... args) {
    const void* const kernel = reinterpret_cast<const void*>(Kernel);
    if (shared_bytes > 0) {
        static SharedMemoryLimits limits;
        limits.raise(kernel);
    }
    // CUDA copies as many bytes as a parameter has: what is given as an int for an int64_t has to become one.
    const auto start = [&]<class... Parameters>(void (*)(Parameters...)) {
        std::tuple<Parameters...> parameters(args...);
        std::apply(
            [&](Parameters&... parameter) {
                void* pointers[] = {&parameter...};
                check_cuda(cudaLaunchKernel(kernel, dim3(grid.x, grid.y, grid.z), dim3(threads), pointers,
                                            shared_bytes, static_cast<cudaStream_t>(stream)),
                           "cudaLaunchKernel");
            },
            parameters);
    };
    start(Kernel);
}

CK_DEVICE int thread_index() { return threadIdx.x; }
CK_DEVICE int block_size() { return blockDim.x; }
CK_DEVICE Dim3 block_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
CK_DEVICE Dim3 grid_size() { return {gridDim.x, gridDim.y, gridDim.z}; }

CK_DEVICE void sync_threads() { __syncthreads(); }
CK_DEVICE void sync_warp(unsigned mask = kFullWarp) { __syncwarp(mask); }

template <class T>
CK_DEVICE T shuffle(T value, int source, unsigned mask = kFullWarp) {
    return __shfl_sync(mask, value, source);
}
template <class T>
CK_DEVICE T shuffle_xor(T value, int distance, unsigned mask = kFullWarp) {
    return __shfl_xor_sync(mask, value, distance);
}
template <class T>
CK_DEVICE T shuffle_down(T value, int distance, unsigned mask = kFullWarp) {
    return __shfl_down_sync(mask, value, distance);
}

CK_DEVICE bool any_lane(bool condition) { return __any_sync(kFullWarp, condition); }
// Not ballot, a name that CUDA's headers have taken outside of any namespace.
CK_DEVICE unsigned lanes_where(bool condition) { return __ballot_sync(kFullWarp, condition); }
CK_DEVICE int count_bits(unsigned bits) { return __popc(bits); }
CK_DEVICE int lowest_bit(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }

template <class T>
CK_DEVICE T atomic_add(T* address, T value) {
    return atomicAdd(address, value);
}

template <int N, class T>
CK_DEVICE Vec<T, N> load(const T* address) {
    return *reinterpret_cast<const Vec<T, N>*>(address);
}
template <int N, class T>
CK_DEVICE void store(T* address, const Vec<T, N>& value) {
    *reinterpret_cast<Vec<T, N>*>(address) = value;
}

CK_DEVICE unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// `valid` false writes zeros and reads nothing.
template <int Bytes>
CK_DEVICE void copy_async(void* shared, const void* global, bool valid = true) {
    static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
    const int source_bytes = valid ? Bytes : 0;
    if constexpr (Bytes == 16) {  // past L1: what is copied is read once
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
                     "l"(global), "r"(source_bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)),
                     "l"(global), "n"(Bytes), "r"(source_bytes)
                     : "memory");
    }
}
CK_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int Groups>
CK_DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(Groups) : "memory");
}

template <int Count>
CK_DEVICE void load_matrix(uint32_t (&registers)[Count], const void* row) {
    const unsigned address = shared_address(row);
    static_assert(Count == 2 || Count == 4);
    if constexpr (Count == 4) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                     : "=r"(registers[0]), "=r"(registers[1])
                     : "r"(address)
                     : "memory");
    }
}
template <int Count>
CK_DEVICE void load_matrix_transposed(uint32_t (&registers)[Count], const void* row) {
    const unsigned address = shared_address(row);
    static_assert(Count == 2 || Count == 4);
    if constexpr (Count == 4) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                     : "=r"(registers[0]), "=r"(registers[1])
                     : "r"(address)
                     : "memory");
    }
}

// volatile as all operations of a whole warp are: the compiler must not move one into a branch that some
// lanes do not take.
template <class T>
CK_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (kIsBFloat16<T>) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
}

CK_DEVICE float exp2_approx(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(value));
    return result;
}
CK_DEVICE float log2_approx(float value) { return __log2f(value); }
CK_DEVICE float minimum(float a, float b) {
    float result;
    asm("min.NaN.f32 %0, %1, %2;\n" : "=f"(result) : "f"(a), "f"(b));
    return result;
}

CK_DEVICE float to_float(BFloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
CK_DEVICE float to_float(Half value) {
    float result;
    asm("cvt.f32.f16 %0, %1;\n" : "=f"(result) : "h"(value.bits));
    return result;
}
// Two elements of 16 bits in one register; the first is in the low half.
template <class T>
CK_DEVICE Float2 unpack(uint32_t pair) {
    if constexpr (kIsBFloat16<T>) {
        return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
    } else {
        return {to_float(Half{static_cast<uint16_t>(pair)}),
                to_float(Half{static_cast<uint16_t>(pair >> 16)})};
    }
}
template <class T>
CK_DEVICE uint32_t pack(float first, float second) {
    uint32_t pair;
    if constexpr (kIsBFloat16<T>) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(second), "f"(first));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(second), "f"(first));
    }
    return pair;
}

}  // namespace ck
