// SPDX-License-Identifier: MIT
// The shared memory of one block. Every block finds it full of NaN (all bits set), fixed arrays too; what
// lies behind its end is poisoned for AddressSanitizer.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace ck::emulator {

class SharedMemory {
  public:
    // Before a block: `bytes` of dynamic memory, no fixed arrays yet.
    void reset(size_t bytes);

    unsigned char* dynamic() const { return dynamic_.get(); }

    // The fixed array that belongs to `key`; the threads of a block get the same one.
    void* fixed(const void* key, size_t bytes);

    // Whether the bytes lie in one of this block's arrays.
    bool contains(const void* address, size_t bytes) const;

  private:
    struct Free {
        void operator()(unsigned char* memory) const;
    };
    using Memory = std::unique_ptr<unsigned char[], Free>;
    static Memory allocate(size_t bytes);

    struct Fixed {
        const void* key;
        size_t bytes;
        Memory memory;
    };
    Memory dynamic_;
    size_t dynamic_bytes_ = 0;
    std::vector<Fixed> fixed_;
};

}  // namespace ck::emulator
