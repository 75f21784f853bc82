// SPDX-License-Identifier: MIT
// Value as kernels read it: for one image and head, rows of whole vectors of the accumulation type, one pixel
// after the other. As it comes, the pixels of a head are M·D numbers apart: they would share a few sets of
// the cache, and of every line that is read another head's part would be of no use.
#pragma once

#include "cpu/pack.h"
#include "cpu/parallel.h"
#include "deformable_attention/params.h"

namespace ck::CK_ISA {

// Pixels of a packing task.
constexpr int64_t kPackedPixels = 64;

// Reads of a pixel by one head, on average, that make up for a copy of it (measured: 4 do not, 64 do).
constexpr int64_t kReadsPerPixel = 8;

// The pixels of one image and head; `stride` numbers apart.
template <class A>
struct HeadPixels {
    const A* data;
    int64_t stride;

    const A* pixel(int64_t index) const { return data + index * stride; }
};

template <class T>
class PackedValue {
    using A = Accumulator<T>;

  public:
    PackedValue(const Tokens& value, const DeformableAttentionShape& shape)
        : value_(value), shape_(shape), padded_(round_up(shape.head_dim, kLanes<A>)) {
        // As they are, if they can be read so and lie close, or are read less often than packing would.
        const int64_t reads = shape.queries * shape.level_count * shape.points * 4;
        is_packed_ = sizeof(T) != sizeof(A) || padded_ != shape.head_dim ||
                     (value.token_stride != padded_ && reads >= kReadsPerPixel * shape.pixels);
    }

    // Numbers of memory that `pack` wants.
    int64_t size() const { return is_packed_ ? int64_t{shape_.heads} * shape_.pixels * padded_ : 0; }

    // Prepares the heads of an image, on `threads` threads, in `memory`.
    void pack(int64_t batch, A* memory, int threads) {
        packed_ = memory;
        if (!is_packed_) return;
        parallel_for(threads, ceil_div(shape_.pixels, kPackedPixels), [&](int64_t index, int) {
            const int64_t first = index * kPackedPixels, rest = shape_.pixels - first;
            const int64_t count = rest < kPackedPixels ? rest : kPackedPixels;
            for (int64_t head = 0; head < shape_.heads; ++head) {
                const T* source = value_.head<const T>(batch, head) + first * value_.token_stride;
                A* target = packed_ + (head * shape_.pixels + first) * padded_;
                pack_rows<A>(source, value_.token_stride, count, shape_.head_dim, A{1}, target,
                             static_cast<int>(padded_));
            }
        });
    }

    // After `pack` of this image.
    HeadPixels<A> head(int64_t batch, int64_t head) const {
        if constexpr (sizeof(T) == sizeof(A)) {
            if (!is_packed_) return {value_.head<const A>(batch, head), value_.token_stride};
        }
        return {packed_ + head * shape_.pixels * padded_, padded_};
    }

  private:
    Tokens value_;
    DeformableAttentionShape shape_;
    int64_t padded_;
    bool is_packed_;
    A* packed_ = nullptr;
};

}  // namespace ck::CK_ISA
