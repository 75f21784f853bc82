// SPDX-License-Identifier: MIT
// Channels that move as one, as registers have them: elements of 16 bits in pairs, since apart every zero
// that stands for a pixel outside would split and join them.
#pragma once

#include <bit>
#include <type_traits>

#include "cuda/device.h"

namespace ck::cuda {

template <class T, int N>
struct Channels {
    static constexpr bool kPairs = sizeof(T) == 2 && N > 1;
    static_assert(!kPairs || N % 2 == 0);
    using Registers = std::conditional_t<kPairs, Vec<uint32_t, kPairs ? N / 2 : 1>, Vec<T, N>>;

    Registers registers;

    CK_DEVICE static Channels read(const T* address) { return {std::bit_cast<Registers>(load<N>(address))}; }
    CK_DEVICE static Channels rounded(const float (&values)[N]) {
        Channels result;
        if constexpr (kPairs) {
            CK_UNROLL
            for (int i = 0; i < N / 2; ++i) {
                result.registers.data[i] = pack<T>(values[2 * i], values[2 * i + 1]);
            }
        } else {
            CK_UNROLL
            for (int i = 0; i < N; ++i) result.registers.data[i] = from_float<T>(values[i]);
        }
        return result;
    }
    CK_DEVICE void write(T* address) const { store<N>(address, std::bit_cast<Vec<T, N>>(registers)); }

    CK_DEVICE void widen(float (&values)[N]) const {
        CK_UNROLL
        for (int i = 0; i < N; ++i) {
            if constexpr (kPairs) {
                const Float2 pair = unpack<T>(registers.data[i / 2]);
                values[i] = i % 2 ? pair.y : pair.x;
            } else {
                values[i] = to_float(registers.data[i]);
            }
        }
    }
};

}  // namespace ck::cuda
