// SPDX-License-Identifier: MIT
// How a walker goes through the rows of its strips, and how rows travel between global and shared memory.
#pragma once

#include "common/device.h"
#include "local_aggregation/cuda/tiling.h"

namespace ck::cuda {

// Rows in shared memory: the one that is computed, and those that are on their way meanwhile.
constexpr int kStages = 4;

// Bytes that move at once, between 16 and one element: what the addresses of every row are a multiple of.
template <class T>
int access_bytes(const Image& image, const DepthwiseShape& shape) {
    const auto multiple_of = [&](int bytes) {
        const auto divides = [&](int64_t elements) {
            return elements * static_cast<int>(sizeof(T)) % bytes == 0;
        };
        return reinterpret_cast<uintptr_t>(image.data) % bytes == 0 && divides(shape.channels) &&
               (shape.batch == 1 || divides(image.batch_stride)) &&
               (shape.height == 1 || divides(image.row_stride)) &&
               (shape.width == 1 || divides(image.column_stride));
    };
    return multiple_of(16) ? 16 : multiple_of(4) ? 4 : static_cast<int>(sizeof(T));
}

// What a warp works on, and with which others.
struct Place {
    int64_t chunk;
    int part;           // of all chunks and tiles: where the block's sums go
    int walker;         // of the block
    int column_warp;    // of the walker
    int thread;         // of the walker
    int first_channel;  // of the block
    int first_column;   // of the walker

    CK_DEVICE explicit Place(const Tiling& tiling) {
        const unsigned block = block_index().x, groups = tiling.groups, tiles = tiling.tiles;
        part = static_cast<int>(block / groups);
        chunk = block / groups / tiles;
        walker = warp() / tiling.column_warps;
        column_warp = warp() % tiling.column_warps;
        thread = column_warp * kWarpSize + lane();
        first_channel = static_cast<int>(block % groups) * kGroupChannels;
        first_column = static_cast<int>(block / groups % tiles) * tiling.column_warps * kColumns;
    }
};

// A run of rows of one image; none when begin == end.
struct Strip {
    int64_t image;
    int begin, end;

    // The `index`-th strip of a walker.
    CK_DEVICE Strip(const Tiling& tiling, const Place& place, int height, int index) : begin(0), end(0) {
        const int64_t strip = (place.chunk * tiling.sequence + index) * tiling.walkers + place.walker;
        image = tiling.whole_images() ? strip : strip / tiling.strips;
        if (index >= tiling.sequence || strip >= tiling.all_strips) return;
        begin = static_cast<int>(strip - image * tiling.strips) * tiling.strip_rows;
        end = begin + tiling.strip_rows < height ? begin + tiling.strip_rows : height;
    }
    CK_DEVICE bool contains(int row) const { return begin <= row && row < end; }
    // Whether an input row is there for it.
    CK_DEVICE bool has_input(int row, int height) const { return begin < end && 0 <= row && row < height; }
};

// The rows that a walker passes, strip by strip: from `lead` rows before or behind a strip's first on. Strips
// that are short or missing take as many steps as others, so that the walkers of a block stay together.
struct Walk {
    Strip strip;
    int index = 0, step = 0;

    CK_DEVICE Walk(const Tiling& tiling, const Place& place, int height) : strip(tiling, place, height, 0) {}
    CK_DEVICE void advance(const Tiling& tiling, const Place& place, int height, int steps) {
        if (++step < steps) return;
        step = 0;
        strip = Strip(tiling, place, height, ++index);
    }
};

// A run of pixels of one row of an image, of 64 channels from the first one of a group on.
template <class T>
struct Run {
    T* row;  // column 0, the first channel of the group
    int64_t column_stride;
    int first_column, columns;  // may begin before the row and end behind it
    int width, channels;        // the row's and, counted from the first one of the group, the image's
};

// The threads copy a run to shared memory, (columns, 64), with zeros for what lies outside of the image.
template <int Bytes, class T>
CK_DEVICE void copy_run(T* shared, const Run<const T>& run, int thread, int threads) {
    constexpr int kElements = Bytes / sizeof(T), kPieces = kGroupChannels / kElements;
    for (int piece = thread; piece < run.columns * kPieces; piece += threads) {
        const int column = run.first_column + piece / kPieces, channel = piece % kPieces * kElements;
        const bool valid = 0 <= column && column < run.width && channel < run.channels;
        T* const to = shared + piece * kElements;
        const T* const from = run.row + column * run.column_stride + channel;
        if constexpr (Bytes >= 4) {
            copy_async<Bytes>(to, from, valid);
        } else {  // too small for an asynchronous copy
            *to = valid ? *from : T{};
        }
    }
}
template <class T>
CK_DEVICE void copy_run(int access, T* shared, const Run<const T>& run, int thread, int threads) {
    if (access == 16) {
        copy_run<16>(shared, run, thread, threads);
    } else if (access == 4) {
        copy_run<4>(shared, run, thread, threads);
    } else {
        copy_run<sizeof(T)>(shared, run, thread, threads);
    }
}

// A warp stores kColumns pixels of a run from shared memory.
template <int Bytes, class T>
CK_DEVICE void store_run(const T* shared, const Run<T>& run) {
    constexpr int kElements = Bytes / sizeof(T), kPieces = kGroupChannels / kElements;
    for (int piece = lane(); piece < kColumns * kPieces; piece += kWarpSize) {
        const int column = run.first_column + piece / kPieces, channel = piece % kPieces * kElements;
        if (column < run.width && channel < run.channels) {
            store<kElements>(run.row + column * run.column_stride + channel,
                             load<kElements>(shared + piece * kElements));
        }
    }
}
template <class T>
CK_DEVICE void store_run(int access, const T* shared, const Run<T>& run) {
    if (access == 16) {
        store_run<16>(shared, run);
    } else if (access == 4) {
        store_run<4>(shared, run);
    } else {
        store_run<sizeof(T)>(shared, run);
    }
}

// A lane's two channels.
CK_DEVICE Float2 to_float(const Vec<float, 2>& pair) { return {pair.data[0], pair.data[1]}; }
template <class T>
CK_DEVICE Float2 to_float(const Vec<T, 2>& pair) {
    return {to_float(pair.data[0]), to_float(pair.data[1])};
}
template <class T>
CK_DEVICE Vec<T, 2> from_floats(Float2 value) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return {value.x, value.y};
    } else {
        const uint32_t bits = pack<T>(value.x, value.y);
        return {T{static_cast<uint16_t>(bits)}, T{static_cast<uint16_t>(bits >> 16)}};
    }
}

// sum + a · b, channel by channel.
CK_DEVICE Float2 multiply_add(Float2 a, Float2 b, Float2 sum) {
    return {a.x * b.x + sum.x, a.y * b.y + sum.y};
}

}  // namespace ck::cuda
