// SPDX-License-Identifier: MIT
#include "cpu/workspace.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace ck {
namespace {

constexpr std::size_t kPage = 4096;

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

struct Buffer {
    std::unique_ptr<void, Free> memory;
    std::size_t bytes = 0;
};

}  // namespace

void* workspace(std::size_t bytes) {
    thread_local Buffer buffer;
    if (buffer.bytes < bytes) {
        const std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
        buffer.bytes = 0;
        buffer.memory.reset();
        buffer.memory.reset(std::aligned_alloc(kPage, rounded));
        if (!buffer.memory) throw std::bad_alloc();
        buffer.bytes = rounded;
    }
    return buffer.memory.get();
}

}  // namespace ck
