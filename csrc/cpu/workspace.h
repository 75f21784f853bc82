// SPDX-License-Identifier: MIT
// Scratch memory of a kernel call.
#pragma once

#include <cstddef>

namespace ck {

// At least `bytes` of memory at a 64-byte boundary, valid until this thread asks again. It belongs to the
// calling thread and only ever grows: a fresh allocation would cost a page fault for every 4 KB in every
// call. Kernels ask once, outside of their parallel region, where std::bad_alloc can still reach the caller.
void* workspace(std::size_t bytes);

}  // namespace ck
