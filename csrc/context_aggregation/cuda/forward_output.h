// SPDX-License-Identifier: MIT
// The second step of the forward: attention from shared memory + local term, rounded once, to global memory.
#pragma once

#include "context_aggregation/cuda/forward.h"
#include "context_aggregation/cuda/window.h"

namespace ck::cuda {

// A chunk of one head's tokens in shared memory.
template <class T>
struct OutputRows {
    float* attention;  // of token `begin`, rows kPitch floats apart; overwritten
    const T* values;   // of token 0
    const float* weight;
    int64_t batch, head;
    int begin, end;  // the tokens
};

namespace output {

// Writes two channels of consecutive tokens.
template <class T>
struct Writer {
    T* out;
    int64_t stride;
    bool both, paired;  // whether the second channel exists, and can be written with the first

    CK_DEVICE void operator()(float first, float second) {
        if (paired) {
            if constexpr (sizeof(T) == 4) {
                store<2>(out, Vec<float, 2>{first, second});
            } else {
                store<1>(reinterpret_cast<uint32_t*>(out), Vec<uint32_t, 1>{pack<T>(first, second)});
            }
        } else {
            out[0] = from_float<T>(first);
            if (both) out[1] = from_float<T>(second);
        }
        out += stride;
    }
};

// Adds the taps of the window's rows [FirstRow, FirstRow + Rows), K = 0 for no window; the last of them write
// y. `start` is what the sums start from, the local bias or null.
template <class T, int D, int K, int FirstRow, int Rows, bool Last>
CK_DEVICE void add_window(const ForwardArguments& arguments, const OutputRows<T>& rows, const float* start) {
    constexpr int kRow = kPitch<float, D> + (sizeof(T) == 4 ? 0 : 4);  // D + 8 floats: two rows of 16 bits
    const MixShape& shape = arguments.mix.shape;
    const Tokens& out = arguments.mix.out;
    const int pairs = (shape.head_dim + 1) / 2;
    const int first_row = rows.begin / shape.width, last_row = (rows.end - 1) / shape.width;
    for (int item = thread_index(); item < (last_row - first_row + 1) * pairs; item += block_size()) {
        const int channel = item % pairs * 2;
        RowSegment segment{first_row + item / pairs, 0, shape.width, shape.height, shape.width};
        const int row_begin = segment.y * shape.width;
        segment.begin = row_begin < rows.begin ? rows.begin - row_begin : 0;
        segment.end = row_begin + shape.width > rows.end ? rows.end - row_begin : shape.width;

        const int token = row_begin + segment.begin;
        const bool both = channel + 1 < shape.head_dim;
        float* attention = rows.attention + (token - rows.begin) * kRow + channel;
        Writer<T> writer{out.head<T>(rows.batch, rows.head) + token * out.token_stride + channel,
                         out.token_stride, both, arguments.plan.paired_store};
        const auto take = [&](const Float2& sum) {
            const Vec<float, 2> dynamic = load<2>(attention);
            if constexpr (Last) {
                writer(dynamic.data[0] + sum.x, dynamic.data[1] + sum.y);
            } else {
                store<2>(attention, Vec<float, 2>{dynamic.data[0] + sum.x, dynamic.data[1] + sum.y});
            }
            attention += kRow;
        };
        if constexpr (K == 0) {
            for (int x = segment.begin; x < segment.end; ++x) take({0, 0});
        } else {
            const Float2 bias{start ? start[channel] : 0.f, start && both ? start[channel + 1] : 0.f};
            walk_row<T, K, FirstRow, Rows, kPitch<T, D>>(rows.values + channel, rows.weight + channel * K * K,
                                                         segment, bias, take);
        }
    }
}

}  // namespace output

// By all threads of the block, after a barrier.
template <class T, int D>
CK_DEVICE void write_output(const ForwardArguments& arguments, const OutputRows<T>& rows) {
    const MixForward& mix = arguments.mix;
    const float* bias = static_cast<const float*>(mix.local_bias);
    if (bias) bias += rows.head * mix.shape.head_dim;
    switch (mix.shape.kernel_height) {
        case 3:
            return output::add_window<T, D, 3, 0, 3, true>(arguments, rows, bias);
        case 5:
            return output::add_window<T, D, 5, 0, 5, true>(arguments, rows, bias);
        case 7:  // in two parts: a thread has registers for the weights of 28 taps of two channels, not of 49
            output::add_window<T, D, 7, 0, 4, false>(arguments, rows, bias);
            return output::add_window<T, D, 7, 4, 3, true>(arguments, rows, nullptr);
        default:
            return output::add_window<T, D, 0, 0, 0, true>(arguments, rows, nullptr);
    }
}

}  // namespace ck::cuda
