// SPDX-License-Identifier: MIT
// A launch: the blocks of the grid on the processor's cores, finished when it returns.
#pragma once

#include <array>
#include <cstddef>
#include <string>

namespace ck::emulator {

// The order in which the threads of a block take turns, for every launch from now on.
void set_thread_order(const std::string& order);

struct Launch {
    std::string kernel;
    std::array<unsigned, 3> grid;
    int threads;
    size_t shared_bytes;
    void (*body)(const void*);
    const void* arguments;
};

// Throws KernelError.
void run(const Launch& launch);

// The name of a kernel, from the name of a function template that has it as an argument.
std::string kernel_name(const char* pretty_function);

}  // namespace ck::emulator
