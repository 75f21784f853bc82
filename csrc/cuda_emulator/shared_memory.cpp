// SPDX-License-Identifier: MIT
#include "cuda_emulator/shared_memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "cuda_emulator/race_check.h"

namespace ck::emulator {
namespace {

constexpr size_t kAlignment = 128;
constexpr int kNaN = 0xff;  // in every byte: NaN in every floating-point type

}  // namespace

// malloc's own memory, not a pool: AddressSanitizer then knows its exact end.
SharedMemory::Memory SharedMemory::allocate(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, bytes ? bytes : 1) != 0) throw std::bad_alloc();
    std::memset(memory, kNaN, bytes);
    return Memory(static_cast<unsigned char*>(memory));
}

void SharedMemory::Free::operator()(unsigned char* memory) const { std::free(memory); }

void SharedMemory::reset(size_t bytes) {
    dynamic_ = allocate(bytes);
    dynamic_bytes_ = bytes;
    fixed_.clear();
}

void* SharedMemory::fixed(const void* key, size_t bytes) {
    for (const Fixed& array : fixed_) {
        if (array.key != key) continue;
        order_after(array.memory.get());
        return array.memory.get();
    }
    fixed_.push_back({key, bytes, allocate(bytes)});
    unsigned char* const memory = fixed_.back().memory.get();
    // The thread that comes first fills the array with NaN: that is no race with the others' use of it.
    order_before(memory);
    return memory;
}

bool SharedMemory::contains(const void* address, size_t bytes) const {
    const auto inside = [&](const unsigned char* begin, size_t size) {
        const auto* first = static_cast<const unsigned char*>(address);
        return first >= begin && first + bytes <= begin + size;
    };
    if (inside(dynamic_.get(), dynamic_bytes_)) return true;
    for (const Fixed& array : fixed_) {
        if (inside(array.memory.get(), array.bytes)) return true;
    }
    return false;
}

}  // namespace ck::emulator
