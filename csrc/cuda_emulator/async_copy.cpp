// SPDX-License-Identifier: MIT
// cp.async as late as PTX allows: a copy happens when its thread waits for it, and until then its destination
// is NaN.
#include <cstring>

#include "cuda_emulator/block.h"

namespace ck::emulator {

void start_copy(const PendingCopy& copy) {
    Thread& thread = current();
    if (!thread.block->shared.contains(copy.shared, copy.bytes)) {
        fail("copy_async: the destination lies outside shared memory", copy.where);
    }
    if (copy.valid) {
        // AddressSanitizer looks at the source here, where the line of the kernel is known, and not at the
        // wait.
        unsigned char seen[16];
        std::memcpy(seen, copy.global, copy.bytes);
        asm volatile("" ::"r"(seen) : "memory");
    }
    std::memset(copy.shared, 0xff, copy.bytes);
    thread.copy_groups.back().push_back(copy);
}

void commit_copies() { current().copy_groups.emplace_back(); }

void wait_for_copies(int groups_left) {
    auto& groups = current().copy_groups;
    // The last group is the one that is not committed yet.
    while (static_cast<int>(groups.size()) - 1 > groups_left) {
        for (const PendingCopy& copy : groups.front()) {
            if (copy.valid) {
                std::memcpy(copy.shared, copy.global, copy.bytes);
            } else {
                std::memset(copy.shared, 0, copy.bytes);
            }
        }
        groups.erase(groups.begin());
    }
}

}  // namespace ck::emulator
