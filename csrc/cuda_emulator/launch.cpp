// SPDX-License-Identifier: MIT
#include "cuda_emulator/launch.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cuda/device_types.h"
#include "cuda/runtime.h"
#include "cuda_emulator/block.h"

namespace ck::emulator {
namespace {

std::atomic<ThreadOrder> thread_order = ThreadOrder::ascending;

// What every GPU of compute capability 8.0 and up allows.
constexpr int kMaxThreads = 1024;

void check(const Launch& launch) {
    const auto refuse = [&](const std::string& why) {
        throw KernelError("launch of " + launch.kernel + ": " + why);
    };
    if (launch.threads < 1 || launch.threads > kMaxThreads) {
        refuse("a block has 1 to 1024 threads, got " + std::to_string(launch.threads));
    }
    for (int axis = 0; axis < 3; ++axis) {
        const unsigned most = axis == 0 ? 0x7fffffffu : kMaxBlocksYZ;
        if (launch.grid[axis] < 1 || launch.grid[axis] > most) {
            refuse("axis " + std::to_string(axis) + " of the grid has 1 to " + std::to_string(most) +
                   " blocks, got " + std::to_string(launch.grid[axis]));
        }
    }
    const size_t most_bytes = static_cast<size_t>(shared_memory_limit());
    if (launch.shared_bytes > most_bytes) {
        refuse("a block has at most " + std::to_string(most_bytes) + " bytes of shared memory, got " +
               std::to_string(launch.shared_bytes));
    }
}

}  // namespace

void set_thread_order(const std::string& order) {
    if (order != "ascending" && order != "descending") {
        throw std::invalid_argument("order: expected ascending or descending, got " + order);
    }
    thread_order = order == "ascending" ? ThreadOrder::ascending : ThreadOrder::descending;
}

void run(const Launch& launch) {
    check(launch);
    const auto& grid = launch.grid;
    const uint64_t blocks = uint64_t{grid[0]} * grid[1] * grid[2];
    std::atomic<uint64_t> next = 0;
    std::exception_ptr error;
    std::mutex error_lock;
    const auto work = [&] {
        Block block(thread_order);
        try {
            for (uint64_t i = next++; i < blocks; i = next++) {
                const std::array<unsigned, 3> index = {static_cast<unsigned>(i % grid[0]),
                                                       static_cast<unsigned>(i / grid[0] % grid[1]),
                                                       static_cast<unsigned>(i / grid[0] / grid[1])};
                block.run(launch.kernel, index, grid, launch.threads, launch.shared_bytes, launch.body,
                          launch.arguments);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> hold(error_lock);
            if (!error) error = std::current_exception();
            next = blocks;  // the others stop as well
        }
    };
#if defined(CK_RACE_CHECK)
    const unsigned least = 2;  // blocks on one thread would be ordered
#else
    const unsigned least = 1;
#endif
    const unsigned cores = std::max(least, std::thread::hardware_concurrency());
    const uint64_t workers = std::min<uint64_t>(blocks, cores);
    std::vector<std::thread> others;
    for (uint64_t worker = 1; worker < workers; ++worker) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
    if (error) std::rethrow_exception(error);
}

std::string kernel_name(const char* pretty_function) {
    const std::string text = pretty_function;  // "… [with auto Kernel = ck::f<3>; Args = {…}; …]"
    const std::string before = "Kernel = ";
    const size_t begin = text.find(before) + before.size();
    return text.substr(begin, text.find_first_of(";]", begin) - begin);
}

}  // namespace ck::emulator
