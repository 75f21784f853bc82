// SPDX-License-Identifier: MIT
// Tokens with heads: (batch, token, head, channel), the channels next to each other; strides are in elements.
#pragma once

#include "common/types.h"

namespace ck {

struct Tokens {
    void* data;
    int64_t batch_stride, token_stride, head_stride;

    // constexpr, so that device code can call it.
    template <class T>
    constexpr T* head(int64_t batch, int64_t head) const {
        return static_cast<T*>(data) + batch * batch_stride + head * head_stride;
    }
};

}  // namespace ck
