// SPDX-License-Identifier: MIT
// How a warp group goes through the rows of its row tiles, and how rows travel between global and shared
// memory.
#pragma once

#include <bit>

#include "cuda/device.h"
#include "local_aggregation/cuda/tiling.h"

namespace ck::cuda {

// Rows in shared memory: those on their way, and the one that is computed meanwhile.
constexpr int kAhead = 3;
constexpr unsigned kStages = kAhead + 1;

// Bytes that move at once, between 16 and one element: what the addresses of all pixels are a multiple of,
// and of the columns beside the image, which copies that read nothing are given.
template <class T>
int access_bytes(const Image& image, const LocalAggregationShape& shape) {
    const auto multiple_of = [&](int bytes) {
        const auto divides = [&](int64_t elements) {
            return elements * static_cast<int>(sizeof(T)) % bytes == 0;
        };
        return reinterpret_cast<uintptr_t>(image.data) % bytes == 0 && divides(shape.channels) &&
               (shape.batch == 1 || divides(image.batch_stride)) &&
               (shape.height == 1 || divides(image.row_stride)) && divides(image.column_stride);
    };
    return multiple_of(16) ? 16 : multiple_of(4) ? 4 : static_cast<int>(sizeof(T));
}

// Behind the columns of every row.
constexpr int kNoColumn = 1 << 20;

// What a warp works on, and with which others.
struct Place {
    int chunk;
    int part;           // of all chunks and tiles: where the block's sums go
    int index;          // of the warp in the block
    int warp_group;     // of the block
    int column_warp;    // of the warp group
    int first_channel;  // of the block
    int first_column;   // of the warp group

    CK_DEVICE explicit Place(const Tiling& tiling) {
        const unsigned block = block_index().x, groups = tiling.channel_groups, tiles = tiling.column_tiles;
        part = static_cast<int>(block / groups);
        chunk = static_cast<int>(block / groups / tiles);
        // By a shuffle the compiler knows that it is the same in all lanes, and keeps it, and what follows
        // from it, in the registers that a warp shares.
        index = shuffle(warp(), 0);
        warp_group = index / tiling.column_warps;
        column_warp = index % tiling.column_warps;
        first_channel = static_cast<int>(block % groups) * kGroupChannels;
        first_column = static_cast<int>(block / groups % tiles) * tiling.columns();
    }
};

// A run of rows of one image.
struct RowTile {
    int image, begin, rows;

    // The `index`-th row tile of a warp group. One that does not exist has no rows and is far above its
    // image.
    CK_DEVICE RowTile(const Tiling& tiling, const Place& place, int height, int index)
        : image(0), begin(-(1 << 30)), rows(0) {
        const int row_tile =
            (place.chunk * tiling.row_tiles_per_warp_group + index) * tiling.warp_groups + place.warp_group;
        if (index >= tiling.row_tiles_per_warp_group || row_tile >= tiling.all_row_tiles) return;
        image = tiling.whole_images() ? row_tile : row_tile / tiling.row_tiles;
        begin = (row_tile - image * tiling.row_tiles) * tiling.rows_per_tile;
        rows = begin + tiling.rows_per_tile < height ? tiling.rows_per_tile : height - begin;
    }
    CK_DEVICE int end() const { return begin + rows; }
};

CK_DEVICE bool is_inside(int index, int count) {
    return static_cast<unsigned>(index) < static_cast<unsigned>(count);
}

// One thread's part in moving rows of pixels, 64 channels each, between global memory and shared memory,
// where they are (columns, 64). It keeps its channels from pixel to pixel: 16 bytes of them (Aligned), else
// two.
template <class T, bool Aligned>
struct CopySlice {
    int first, step;   // its first column of a row, how far it is to the next one; none if it has no channels
    int channel;       // its first channel
    bool second;       // whether there is a channel for the second of two
    int64_t distance;  // from column to column in global memory

    // `channels`: that the image has from the first one of the block on.
    CK_DEVICE CopySlice(int thread, int threads, int channels, const Image& image)
        : distance(image.column_stride) {
        constexpr int kEach = Aligned ? kVector<T> : 2, kThreadsPerPixel = kGroupChannels / kEach;
        channel = thread % kThreadsPerPixel * kEach;
        first = channel < channels ? thread / kThreadsPerPixel : kNoColumn;
        step = threads / kThreadsPerPixel;
        second = channel + 1 < channels;
    }

    // Where its part of a row begins, for a row whose first column is `column` of the image.
    template <class U>
    CK_DEVICE U* address(const Image& image, const Place& place, int image_index, int row, int column) const {
        return image.row<U>(image_index, row) + (column + first) * distance + place.first_channel + channel;
    }

    // Copies `columns` pixels, from `column` of the image on; those outside of its `width` become zeros.
    CK_DEVICE void copy(const T* from, T* shared, int column, int columns, int width, int access) const {
        T* to = shared + first * kGroupChannels + channel;
        CK_NO_UNROLL
        for (int at = first; at < columns; at += step) {
            const bool valid = is_inside(column + at, width);
            if constexpr (Aligned) {
                copy_async<16>(to, from, valid);
            } else if (sizeof(T) == 2 && access == 4) {
                copy_async<4>(to, from, valid);
            } else {
                copy_element(to, from, valid);
                copy_element(to + 1, from + 1, valid && second);
            }
            to += step * kGroupChannels;
            from += step * distance;
        }
    }

    // Stores `columns` pixels, at most kColumns.
    CK_DEVICE void store_to(T* to, const T* shared, int columns) const {
        const T* from = shared + first * kGroupChannels + channel;
        if constexpr (Aligned) {
            CK_UNROLL
            for (int i = 0; i < kColumns; i += step) {
                if (first + i < columns)
                    store(to + i * distance, load<kVector<T>>(from + i * kGroupChannels));
            }
        } else {
            CK_NO_UNROLL
            for (int at = first; at < columns; at += step) {
                to[0] = from[0];
                if (second) to[1] = from[1];
                from += step * kGroupChannels;
                to += step * distance;
            }
        }
    }

  private:
    CK_DEVICE static void copy_element(T* to, const T* from, bool valid) {
        if constexpr (sizeof(T) == 4) {
            copy_async<4>(to, from, valid);
        } else {  // too small for an asynchronous copy
            *to = valid ? *from : T{};
        }
    }
};

// A lane's two channels.
CK_DEVICE Float2 to_float(const Vec<float, 2>& pair) { return {pair.data[0], pair.data[1]}; }
template <class T>
CK_DEVICE Float2 to_float(const Vec<T, 2>& pair) {
    return unpack<T>(std::bit_cast<uint32_t>(pair));
}
template <class T>
CK_DEVICE Vec<T, 2> from_floats(Float2 value) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return {value.x, value.y};
    } else {
        return std::bit_cast<Vec<T, 2>>(pack<T>(value.x, value.y));
    }
}

// Channel by channel.
CK_DEVICE Float2 add(Float2 a, Float2 b) { return {a.x + b.x, a.y + b.y}; }
CK_DEVICE Float2 subtract(Float2 a, Float2 b) { return {a.x - b.x, a.y - b.y}; }
CK_DEVICE void accumulate(float* sum, Float2 value) {
    const Float2 total = add(to_float(load<2>(sum)), value);
    store(sum, Vec<float, 2>{total.x, total.y});
}
CK_DEVICE Float2 multiply_add(Float2 a, Float2 b, Float2 sum) {
    return {a.x * b.x + sum.x, a.y * b.y + sum.y};
}

}  // namespace ck::cuda
