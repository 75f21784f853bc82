// SPDX-License-Identifier: MIT
// What ThreadSanitizer is told when CK_RACE_CHECK is defined: which accesses a barrier orders. The runtime
// itself is compiled without the sanitizer, since its own bookkeeping is shared by fibers that take turns;
// the kernels with it.
#pragma once

#if defined(CK_RACE_CHECK)
#include <sanitizer/tsan_interface.h>
#endif

namespace ck::emulator {

// What this thread did so far comes before whatever follows an order_after with the same token.
inline void order_before([[maybe_unused]] void* token) {
#if defined(CK_RACE_CHECK)
    __tsan_release(token);
#endif
}
inline void order_after([[maybe_unused]] void* token) {
#if defined(CK_RACE_CHECK)
    __tsan_acquire(token);
#endif
}

}  // namespace ck::emulator
