// SPDX-License-Identifier: MIT
// The rows of tokens that the two halves of a warp read at once. With 16-bit types and head_dim 32 half a warp
// reads 16 of the 32 banks of shared memory, the two channels per lane of one token. The other half's token
// must lie in the other 16 banks, or every such load takes two cycles.
#pragma once

#include "common/device.h"
#include "context_aggregation/cuda/tile.h"

namespace ck::cuda {

// Whether a token's pairs of channels are 16 words, and tokens 20 words apart: those whose distance is 4 modulo
// 8 are then 16 banks apart.
template <class T, int D>
constexpr bool kHalfWarpPerToken = sizeof(T) == 2 && D == 32;
constexpr int kTokensApart = 4;
static_assert(kPitch<Half, 32> / 2 * kTokensApart % 32 == 16);

// How many image rows apart two tokens of one column are `kTokensApart` tokens apart, modulo 8. With widths
// divisible by 8 they never are, and 1 is as good as any number.
CK_DEVICE int rows_apart(int width) {
    const int power = width & -width;  // of two, that divides the width
    return power >= kTokensApart ? 1 : kTokensApart / power;
}

// An order of the numbers from 0 to `count` in which neighbors, an even slot and the odd one after, are `apart`
// (a power of two) apart, modulo twice that: as many of them as possible, the rest at the end.
class PairedOrder {
  public:
    CK_DEVICE PairedOrder(int count, int apart) : distance_(count), pairs_(0), skipped_(0) {
        const int half = (count + 1) / 2;
        if (half < apart) return;
        distance_ = ((half - apart) & ~(2 * apart - 1)) + apart;
        pairs_ = distance_ < count - distance_ ? distance_ : count - distance_;
        if (pairs_ < distance_) skipped_ = pairs_;
    }

    CK_DEVICE int operator[](int slot) const {
        const auto unsigned_slot = static_cast<unsigned>(slot);
        if (slot < 2 * pairs_) return static_cast<int>(unsigned_slot / 2 + unsigned_slot % 2 * distance_);
        return slot - skipped_;
    }

  private:
    int distance_, pairs_, skipped_;
};

}  // namespace ck::cuda
