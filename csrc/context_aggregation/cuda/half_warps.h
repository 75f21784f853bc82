// SPDX-License-Identifier: MIT
// The rows of tokens that the two halves of a warp read at once. With 16-bit types and head_dim 32 half a
// warp reads 16 of the 32 banks of shared memory, the two channels per lane of one token. The other half's
// token must lie in the other 16 banks, or every such load takes two cycles.
#pragma once

#include "context_aggregation/cuda/tile.h"
#include "cuda/device.h"

namespace ck::cuda {

// Whether a token's pairs of channels are 16 words, and tokens 20 words apart: those whose distance is 4
// modulo 8 are then 16 banks apart.
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

// An order of the numbers below `count` in which an even slot and the odd one after it have numbers that are
// `apart`, a power of two, apart: as many of them as possible, the others at the end.
class PairedOrder {
  public:
    CK_DEVICE PairedOrder(int count, int apart) : apart_(apart) {
        const int rest = count & (2 * apart - 1);
        rest_pairs_ = rest > apart ? rest - apart : 0;
        paired_ = count - rest + 2 * rest_pairs_;
    }

    // In every run of 2 * apart numbers, those of its first half with those of its second one.
    CK_DEVICE int operator[](int slot) const {
        const bool odd = slot & 1;
        return slot < paired_ ? slot - (slot >> 1 & (apart_ - 1)) + (odd ? apart_ - 1 : 0)
                              : slot - rest_pairs_;
    }

  private:
    int apart_, paired_, rest_pairs_;
};

}  // namespace ck::cuda
