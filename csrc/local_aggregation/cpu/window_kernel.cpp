// SPDX-License-Identifier: MIT
// A block of the output, kColumns pixels by a few vectors of channels, stays in registers while the rows of
// its window pass by.
#include "cpu/pack.h"
#include "local_aggregation/cpu/window.h"

namespace ck::CK_ISA {
namespace {

// Adds the window's Width columns from `first` on, `before` columns left of its middle, around kColumns
// pixels from (y, x) on, to `sum`, for Vectors vectors of channels from `channel` on. What it adds to columns
// beyond the image is meaningless.
template <int Width, class V, int Vectors, class T>
CK_INLINE void add_window(const Window<T>& window, int first, int before, int y, int x, int channel,
                          V (&sum)[kColumns][Vectors]) {
    constexpr int L = kLanesOf<V>;
    for (int ky = 0; ky < window.kernel_height; ++ky) {
        const int row = y + ky - window.kernel_height / 2;
        if (row < 0 || row >= window.height) continue;
        const T* pixels = window.image + row * window.row_stride + channel;
        const Accumulator<T>* weights =
            window.weight + (ky * window.kernel_width + first) * window.weight_stride + channel;
        V weight[Width][Vectors];
#pragma GCC unroll 8
        for (int kx = 0; kx < Width; ++kx) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v)
                weight[kx][v] = load<V>(weights + kx * window.weight_stride + v * L);
        }
        // Each pixel is read once and added to all columns whose window it is in.
#pragma GCC unroll 16
        for (int i = 0; i < kColumns + Width - 1; ++i) {
            const int column = x + i - before;
            if (column < 0 || column >= window.width) continue;
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) {
                const V pixel = load<V>(pixels + column * window.column_stride + v * L);
#pragma GCC unroll 8
                for (int kx = 0; kx < Width; ++kx) {
                    if (i - kx >= 0 && i - kx < kColumns) sum[i - kx][v] += weight[kx][v] * pixel;
                }
            }
        }
    }
}

// out = sums + bias + window for `columns` <= kColumns pixels from (y, x) on; `sums` (null: 0) and `out`
// point at the first of them.
template <int Width, class V, int Vectors, class T>
CK_INLINE void window_block(const Window<T>& window, int y, int x, int columns, int channel,
                            const Accumulator<T>* sums, int64_t sums_stride, T* out, int64_t out_stride) {
    constexpr int L = kLanesOf<V>;
    V sum[kColumns][Vectors] = {};
    if (window.bias) {
#pragma GCC unroll 8
        for (int i = 0; i < kColumns; ++i) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sum[i][v] = load<V>(window.bias + channel + v * L);
        }
    }
    for_each_piece<Width>(window.kernel_width,
                          [&](auto piece, int first, int before) __attribute__((always_inline)) {
                              add_window<decltype(piece)::value>(window, first, before, y, x, channel, sum);
                          });
#pragma GCC unroll 8
    for (int i = 0; i < kColumns; ++i) {
        if (i >= columns) break;
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            const int64_t offset = channel + v * L;
            if (sums) sum[i][v] += load<V>(sums + i * sums_stride + offset);
            store(out + i * out_stride + offset, sum[i][v]);
        }
    }
}

// The block above for all channels of a run of pixels in one row.
template <int Width, class T>
void window_run(const Window<T>& window, int y, int x_begin, int x_end, const Accumulator<T>* sums,
                int64_t sums_stride, T* out, int64_t out_stride) {
    using A = Accumulator<T>;
    constexpr int L = kLanes<A>;
    // Two vectors of the widest kernel fit 32 registers: 7 · 2 sums, 7 · 2 weights, the pixel.
    constexpr int vectors = kVectorRegisters == 32 ? 2 : 1;
    const auto each_block = [&](auto vector, auto count, int channel) {
        for (int x = x_begin; x < x_end; x += kColumns) {
            const int columns = x_end - x < kColumns ? x_end - x : kColumns;
            const int64_t first = x - x_begin;
            window_block<Width, decltype(vector), decltype(count)::value>(
                window, y, x, columns, channel, sums ? sums + first * sums_stride : nullptr, sums_stride,
                out + first * out_stride, out_stride);
        }
    };
    int channel = 0;
    for (; channel + vectors * L <= window.channels; channel += vectors * L) {
        each_block(Vec<A>{}, Constant<vectors>{}, channel);
    }
    if constexpr (vectors > 1) {
        if (channel + L <= window.channels) {
            each_block(Vec<A>{}, Constant<1>{}, channel);
            channel += L;
        }
    }
    if (channel == window.channels) return;
    if (window.channels >= L) {
        // The rest: a full vector that ends with the channels, and computes some of them again.
        each_block(Vec<A>{}, Constant<1>{}, window.channels - L);
    } else {
        for (; channel < window.channels; ++channel) each_block(Vec<A, 1>{}, Constant<1>{}, channel);
    }
}

}  // namespace

template <class A>
void pack_window_weight(const A* weight, int channels, int taps, bool flipped, A* target,
                        int64_t target_stride) {
    constexpr int L = kLanes<A>;
    for (int c = 0; c < channels; c += L) {
        // From the last tap on backwards is the flipped kernel.
        A* first = flipped ? target + (taps - 1) * target_stride : target;
        pack_transposed(weight + c * taps, taps, channels - c, taps, first + c,
                        flipped ? -target_stride : target_stride);
    }
}

template <class T>
void window_pixels(const Window<T>& window, int64_t begin, int64_t end, const Accumulator<T>* sums,
                   int64_t sums_stride, T* out, int64_t out_stride) {
    for (int64_t pixel = begin; pixel < end;) {
        const int y = static_cast<int>(pixel / window.width), x = static_cast<int>(pixel % window.width);
        const int x_end = end - pixel < window.width - x ? x + static_cast<int>(end - pixel) : window.width;
        switch (window.kernel_width) {
            case 1:
                window_run<1>(window, y, x, x_end, sums, sums_stride, out, out_stride);
                break;
            case 3:
                window_run<3>(window, y, x, x_end, sums, sums_stride, out, out_stride);
                break;
            case 5:
                window_run<5>(window, y, x, x_end, sums, sums_stride, out, out_stride);
                break;
            case 7:
                window_run<7>(window, y, x, x_end, sums, sums_stride, out, out_stride);
                break;
            default:
                window_run<kAnyWidth>(window, y, x, x_end, sums, sums_stride, out, out_stride);
        }
        const int64_t advance = x_end - x;
        if (sums) sums += advance * sums_stride;
        out += advance * out_stride;
        pixel += advance;
    }
}

template void pack_window_weight(const float*, int, int, bool, float*, int64_t);
template void pack_window_weight(const double*, int, int, bool, double*, int64_t);
template void window_pixels(const Window<float>&, int64_t, int64_t, const float*, int64_t, float*, int64_t);
template void window_pixels(const Window<double>&, int64_t, int64_t, const double*, int64_t, double*,
                            int64_t);
template void window_pixels(const Window<BFloat16>&, int64_t, int64_t, const float*, int64_t, BFloat16*,
                            int64_t);
template void window_pixels(const Window<Half>&, int64_t, int64_t, const float*, int64_t, Half*, int64_t);

}  // namespace ck::CK_ISA
