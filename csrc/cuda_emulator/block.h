// SPDX-License-Identifier: MIT
// A block of threads: each thread is a fiber, and they take turns. A thread runs until it has to
// wait for others, at a barrier or at an operation that a warp does together; whatever could hang or be
// undefined on a GPU is an error that names the kernel and the line.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_emulator/fiber.h"
#include "cuda_emulator/shared_memory.h"

namespace ck::emulator {

using Location = std::source_location;

enum class ThreadOrder { ascending, descending };

// What a kernel did wrong.
struct KernelError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A copy from global to shared memory that was started and not waited for.
struct PendingCopy {
    void* shared;
    const void* global;
    int bytes;
    bool valid;
    Location where;
};

// Ends the launch with an error that names the kernel, the thread and the place.
[[noreturn]] void fail(const std::string& problem, Location where);

struct Block;

struct Thread {
    enum class State { ready, at_barrier, at_warp_operation, finished };
    // The most that one thread brings to a warp operation: the fragments of mma.sync.
    static constexpr size_t kOperandBytes = 40;

    Block* block;
    int index;
    Fiber fiber;
    State state;
    // Where it waits, and for what.
    const char* operation;
    Location where;
    unsigned mask;
    // What it brought to the last two warp operations: others may still read the older one.
    std::array<std::array<std::byte, kOperandBytes>, 2> operands;
    unsigned operations;
    unsigned warp_syncs;
    char warp_tokens[2];
    // What the lanes of the warp brought to the operation at hand.
    std::array<const std::byte*, 32> peers;
    // By group; the last group is the one that is not committed yet.
    std::vector<std::vector<PendingCopy>> copy_groups;
};

struct Block {
    explicit Block(ThreadOrder order) : order(order) {}

    // Run one block to its end. Throws KernelError.
    void run(const std::string& kernel, std::array<unsigned, 3> index, std::array<unsigned, 3> grid,
             int threads, size_t shared_bytes, void (*body)(const void*), const void* arguments);

    ThreadOrder order;
    std::array<unsigned, 3> index, grid;
    int size;
    SharedMemory shared;
    void (*body)(const void*);
    const void* arguments;

  private:
    friend void sync_threads(Location);
    friend void sync_warp(unsigned, Location);
    friend const std::byte* const* exchange(const void*, size_t, unsigned, const char*, Location);
    friend void fail(const std::string&, Location);

    static void run_thread(void* thread);
    bool run_warp(int warp);
    void release_barrier();
    std::string describe_waiting() const;
    [[noreturn]] void report(const std::string& problem) const;

    std::string kernel_;
    std::string problem_;
    std::vector<std::unique_ptr<Thread>> threads_;
    int arrived_ = 0, unfinished_ = 0;
    unsigned generation_ = 0;
    // Addresses that stand for an event, for the race check.
    char launch_token_, end_token_, barrier_tokens_[2];
};

// The thread that runs now. Only valid inside a kernel.
Thread& current();

// All threads of the block wait for each other, at one place.
void sync_threads(Location where);

// The lanes of `mask` bring `bytes` bytes each and wait for each other, at one place; what every lane of the
// mask brought, by lane. It stays there until this thread's next exchange but one.
const std::byte* const* exchange(const void* operand, size_t bytes, unsigned mask, const char* operation,
                                 Location where);

// __syncwarp: an exchange of nothing that also orders the lanes' accesses to memory.
void sync_warp(unsigned mask, Location where);

// cp.async of the running thread.
void start_copy(const PendingCopy& copy);
void commit_copies();
void wait_for_copies(int groups_left);

}  // namespace ck::emulator
