// SPDX-License-Identifier: MIT
// The emulated half of cuda/device.h: every operation does what PTX says it does, and checks what PTX
// assumes.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "cuda/device_types.h"
#include "cuda/runtime.h"
#include "cuda_emulator/block.h"
#include "cuda_emulator/half_conversion.h"
#include "cuda_emulator/launch.h"

#define CK_KERNEL(...) void
#define CK_DEVICE inline
#define CK_UNROLL
#define CK_NO_UNROLL
#define CK_DYNAMIC_SHARED(name) unsigned char* const name = ::ck::emulator::current().block->shared.dynamic()
#define CK_SHARED(T, name, count)                \
    static const char name##_of_this_kernel = 0; \
    T* const name = static_cast<T*>(             \
        ::ck::emulator::current().block->shared.fixed(&name##_of_this_kernel, sizeof(T) * (count)))

namespace ck {

using emulator::Location;

template <auto Kernel, class... Args>
void launch(Dim3 grid, int threads, size_t shared_bytes, Stream, const Args&... args) {
    const std::tuple<const Args&...> arguments(args...);
    const auto body = [](const void* tuple) {
        std::apply(Kernel, *static_cast<const std::tuple<const Args&...>*>(tuple));
    };
    emulator::run({emulator::kernel_name(__PRETTY_FUNCTION__),
                   {grid.x, grid.y, grid.z},
                   threads,
                   shared_bytes,
                   body,
                   &arguments});
}

inline int thread_index() { return emulator::current().index; }
inline int block_size() { return emulator::current().block->size; }
inline Dim3 block_index() {
    const auto& index = emulator::current().block->index;
    return {index[0], index[1], index[2]};
}
inline Dim3 grid_size() {
    const auto& size = emulator::current().block->grid;
    return {size[0], size[1], size[2]};
}

inline void sync_threads(Location where = Location::current()) { emulator::sync_threads(where); }
inline void sync_warp(unsigned mask = kFullWarp, Location where = Location::current()) {
    emulator::sync_warp(mask, where);
}

namespace emulator {

// The value of another lane of the warp; `source` outside of the warp is the caller's own lane.
template <class T>
T value_of_lane(T value, int source, unsigned mask, const char* operation, Location where) {
    static_assert(sizeof(T) == 4 && std::is_trivially_copyable_v<T>);
    const std::byte* const* peers = exchange(&value, sizeof(T), mask, operation, where);
    if (source < 0 || source >= kWarpSize) return value;
    if (!peers[source]) fail(std::string(operation) + ": reads a lane that its mask leaves out", where);
    T result;
    std::memcpy(&result, peers[source], sizeof(T));
    return result;
}

}  // namespace emulator

template <class T>
T shuffle(T value, int source, unsigned mask = kFullWarp, Location where = Location::current()) {
    return emulator::value_of_lane(value, source & (kWarpSize - 1), mask, "shuffle", where);
}
template <class T>
T shuffle_xor(T value, int distance, unsigned mask = kFullWarp, Location where = Location::current()) {
    return emulator::value_of_lane(value, thread_index() % kWarpSize ^ distance, mask, "shuffle_xor", where);
}
template <class T>
T shuffle_down(T value, int distance, unsigned mask = kFullWarp, Location where = Location::current()) {
    return emulator::value_of_lane(value, thread_index() % kWarpSize + distance, mask, "shuffle_down", where);
}

inline bool any_lane(bool condition, Location where = Location::current()) {
    const std::byte* const* peers =
        emulator::exchange(&condition, sizeof(condition), kFullWarp, "any_lane", where);
    for (int lane = 0; lane < kWarpSize; ++lane) {
        if (std::to_integer<bool>(*peers[lane])) return true;
    }
    return false;
}

inline unsigned lanes_where(bool condition, Location where = Location::current()) {
    const std::byte* const* peers =
        emulator::exchange(&condition, sizeof(condition), kFullWarp, "lanes_where", where);
    unsigned lanes = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) {
        lanes |= std::to_integer<unsigned>(*peers[lane]) << lane;
    }
    return lanes;
}

inline int count_bits(unsigned bits) { return std::popcount(bits); }
inline int lowest_bit(unsigned bits, Location where = Location::current()) {
    if (!bits) emulator::fail("lowest_bit: no bit is set", where);
    return std::countr_zero(bits);
}

template <class T>
T atomic_add(T* address, T value) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, int32_t>);
    // Not std::atomic_ref: not every C++20 library has it for float.
    T old, sum;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do {
        sum = old + value;
    } while (!__atomic_compare_exchange(address, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

namespace emulator {

inline void check_aligned(const void* address, size_t bytes, const char* operation, Location where) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
        fail(
            std::string(operation) + ": the address is not a multiple of " + std::to_string(bytes) + " bytes",
            where);
    }
}

}  // namespace emulator

template <int N, class T>
Vec<std::remove_const_t<T>, N> load(T* address, Location where = Location::current()) {
    using V = Vec<std::remove_const_t<T>, N>;
    emulator::check_aligned(address, sizeof(V), "load", where);
    V result;
    for (int i = 0; i < N; ++i) result.data[i] = address[i];  // plain accesses: the sanitizers see them
    return result;
}
template <int N, class T>
void store(T* address, const Vec<T, N>& value, Location where = Location::current()) {
    emulator::check_aligned(address, sizeof(value), "store", where);
    for (int i = 0; i < N; ++i) address[i] = value.data[i];
}

template <int Bytes>
void copy_async(void* shared, const void* global, bool valid = true, Location where = Location::current()) {
    static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
    emulator::check_aligned(shared, Bytes, "copy_async, shared side", where);
    // Where it is not valid too: nothing says that a GPU, which takes the address, does not look at it.
    emulator::check_aligned(global, Bytes, "copy_async, global side", where);
    emulator::start_copy({shared, global, Bytes, valid, where});
}
inline void copy_async_commit() { emulator::commit_copies(); }
template <int Groups>
void copy_async_wait() {
    emulator::wait_for_copies(Groups);
}

namespace emulator {

// ldmatrix: lane 8·i + r holds the address of row r of matrix i; a row is 8 elements of 16 bits. Lane l gets
// elements (l / 4, 2 (l % 4)) and the one after, of the matrix or of its transpose.
template <int Count>
void load_matrix(uint32_t (&registers)[Count], const void* row, bool transposed, Location where) {
    static_assert(Count == 2 || Count == 4);
    const int lane = thread_index() % kWarpSize;
    if (lane < 8 * Count) {
        check_aligned(row, 16, "load_matrix", where);
        if (!current().block->shared.contains(row, 16))
            fail("load_matrix: a row lies outside shared memory", where);
    }
    const std::byte* const* peers = exchange(&row, sizeof(row), kFullWarp, "load_matrix", where);
    for (int matrix = 0; matrix < Count; ++matrix) {
        uint32_t pair = 0;
        for (int half = 0; half < 2; ++half) {
            const int major = lane / 4, minor = 2 * (lane % 4) + half;
            const int matrix_row = transposed ? minor : major, column = transposed ? major : minor;
            const uint16_t* elements;
            std::memcpy(&elements, peers[8 * matrix + matrix_row], sizeof(elements));
            pair |= static_cast<uint32_t>(elements[column]) << (16 * half);
        }
        registers[matrix] = pair;
    }
}

struct Fragments {
    uint32_t a[4], b[2];
};

}  // namespace emulator

template <int Count>
void load_matrix(uint32_t (&registers)[Count], const void* row, Location where = Location::current()) {
    emulator::load_matrix(registers, row, false, where);
}
template <int Count>
void load_matrix_transposed(uint32_t (&registers)[Count], const void* row,
                            Location where = Location::current()) {
    emulator::load_matrix(registers, row, true, where);
}

// d += a b with a (16, 16), b (16, 8), d (16, 8). In lane l, with g = l / 4 and t = l % 4:
//   a[0], a[1]: rows g, g + 8, columns 2t, 2t + 1; a[2], a[3]: the same rows, columns 2t + 8, 2t + 9
//   b[0], b[1]: column g, rows 2t, 2t + 1 and 2t + 8, 2t + 9
//   d[0], d[1]: row g, columns 2t, 2t + 1; d[2], d[3]: row g + 8
template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  Location where = Location::current()) {
    emulator::Fragments own;
    std::memcpy(own.a, a, sizeof(own.a));
    std::memcpy(own.b, b, sizeof(own.b));
    static_assert(sizeof(own) <= emulator::Thread::kOperandBytes);
    const std::byte* const* peers = emulator::exchange(&own, sizeof(own), kFullWarp, "multiply_add", where);
    const int lane = thread_index() % kWarpSize, group = lane / 4, column = 2 * (lane % 4);
    for (int pair = 0; pair < 8; ++pair) {  // k = 2 pair, 2 pair + 1
        const int holder = pair % 4, upper = pair / 4;
        emulator::Fragments rows, first_column, second_column;
        std::memcpy(&rows, peers[4 * group + holder], sizeof(rows));
        std::memcpy(&first_column, peers[4 * column + holder], sizeof(rows));
        std::memcpy(&second_column, peers[4 * (column + 1) + holder], sizeof(rows));
        const Float2 top = unpack<T>(rows.a[2 * upper]), bottom = unpack<T>(rows.a[2 * upper + 1]);
        const Float2 left = unpack<T>(first_column.b[upper]), right = unpack<T>(second_column.b[upper]);
        d[0] += top.x * left.x + top.y * left.y;
        d[1] += top.x * right.x + top.y * right.y;
        d[2] += bottom.x * left.x + bottom.y * left.y;
        d[3] += bottom.x * right.x + bottom.y * right.y;
    }
}

inline float exp2_approx(float value) { return std::exp2(value); }
inline float log2_approx(float value) { return std::log2(value); }
inline float minimum(float a, float b) { return a < b || a != a ? a : b; }

}  // namespace ck
