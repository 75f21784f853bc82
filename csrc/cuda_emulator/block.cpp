// SPDX-License-Identifier: MIT
#include "cuda_emulator/block.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "cuda_emulator/race_check.h"

namespace ck::emulator {
namespace {

thread_local Thread* running = nullptr;

constexpr int kLanes = 32;

std::string place(const Location& where) {
    return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

std::string hex(unsigned mask) {
    char text[16];
    std::snprintf(text, sizeof(text), "0x%08x", mask);
    return text;
}

bool same_place(const Location& a, const Location& b) {
    return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

}  // namespace

Thread& current() { return *running; }

void Block::run(const std::string& kernel, std::array<unsigned, 3> block_index,
                std::array<unsigned, 3> grid_size, int threads, size_t shared_bytes,
                void (*kernel_body)(const void*), const void* kernel_arguments) {
    kernel_ = kernel;
    index = block_index;
    grid = grid_size;
    size = unfinished_ = threads;
    body = kernel_body;
    arguments = kernel_arguments;
    arrived_ = 0;
    problem_.clear();
    shared.reset(shared_bytes);
    while (threads_.size() < static_cast<size_t>(threads)) threads_.push_back(std::make_unique<Thread>());
    for (int i = 0; i < threads; ++i) {
        Thread& thread = *threads_[i];
        thread.block = this;
        thread.index = i;
        thread.state = Thread::State::ready;
        thread.operations = thread.warp_syncs = 0;
        thread.copy_groups.assign(1, {});
        thread.fiber.start(&Block::run_thread, &thread);
    }
    order_before(&launch_token_);
    const int warps = (threads + kLanes - 1) / kLanes;
    while (unfinished_ > 0) {
        bool progress = false;
        for (int turn = 0; turn < warps; ++turn) {
            progress |= run_warp(order == ThreadOrder::ascending ? turn : warps - 1 - turn);
        }
        if (!progress)
            report((arrived_ ? "divergent barrier, not all threads reach it:"
                             : "deadlock, no thread can go on:") +
                   describe_waiting());
    }
    order_after(&end_token_);
}

void Block::run_thread(void* argument) {
    Thread& thread = *static_cast<Thread*>(argument);
    Block& block = *thread.block;
    order_after(&block.launch_token_);
    block.body(block.arguments);
    for (const auto& group : thread.copy_groups) {
        if (!group.empty())
            fail("the thread ends and has not waited for this copy_async", group.front().where);
    }
    order_before(&block.end_token_);
    thread.state = Thread::State::finished;
    --block.unfinished_;
}

// Lets the lanes of one warp take turns for as long as any of them can go on; whether any could.
bool Block::run_warp(int warp) {
    const int first = warp * kLanes, count = size - first < kLanes ? size - first : kLanes;
    bool progress = false, again = true;
    while (again) {
        again = false;
        for (int turn = 0; turn < count; ++turn) {
            Thread& thread = *threads_[first + (order == ThreadOrder::ascending ? turn : count - 1 - turn)];
            if (thread.state != Thread::State::ready) continue;
            running = &thread;
            thread.fiber.resume();
            if (!problem_.empty()) report(problem_);
            progress = again = true;
        }
    }
    return progress;
}

void sync_threads(Location where) {
    Thread& thread = current();
    Block& block = *thread.block;
    thread.operation = "sync_threads";
    thread.where = where;
    thread.state = Thread::State::at_barrier;
    // Two tokens are enough: nobody reaches the next barrier but one before all have left this one.
    char* const token = &block.barrier_tokens_[block.generation_ % 2];
    order_before(token);
    if (++block.arrived_ == block.size) {
        block.release_barrier();
    } else {
        thread.fiber.suspend();
    }
    order_after(token);
}

void Block::release_barrier() {
    const Location& first = threads_[0]->where;
    for (int i = 1; i < size; ++i) {
        if (!same_place(first, threads_[i]->where)) {
            fail(
                "divergent barrier: the threads of the block wait at different places: " + describe_waiting(),
                first);
        }
    }
    for (int i = 0; i < size; ++i) threads_[i]->state = Thread::State::ready;
    arrived_ = 0;
    ++generation_;
}

const std::byte* const* exchange(const void* operand, size_t bytes, unsigned mask, const char* operation,
                                 Location where) {
    Thread& thread = current();
    Block& block = *thread.block;
    const int lane = thread.index % kLanes, first = thread.index - lane;
    thread.operation = operation;
    thread.where = where;
    thread.mask = mask;
    if (!(mask >> lane & 1))
        fail(std::string(operation) + ": the lane is not in its own mask " + hex(mask), where);
    // Not memcpy, which ThreadSanitizer watches everywhere: bringing an operand is no access to memory.
    volatile std::byte* const slot = thread.operands[thread.operations++ % 2].data();
    for (size_t i = 0; i < bytes; ++i) slot[i] = static_cast<const std::byte*>(operand)[i];
    thread.state = Thread::State::at_warp_operation;

    std::array<const std::byte*, kLanes> brought{};
    for (int other = 0; other < kLanes; ++other) {
        if (!(mask >> other & 1)) continue;
        if (first + other >= block.size) {
            fail(std::string(operation) + ": mask " + hex(mask) + " names lanes that the block does not have",
                 where);
        }
        const Thread& peer = *block.threads_[first + other];
        if (peer.state != Thread::State::at_warp_operation) {
            thread.fiber.suspend();
            return thread.peers.data();
        }
        if (peer.mask != mask || !same_place(peer.where, where)) {
            fail(std::string(operation) +
                     ": the lanes of the warp are at different operations: " + block.describe_waiting(),
                 where);
        }
        brought[other] = peer.operands[(peer.operations - 1) % 2].data();
    }
    for (int other = 0; other < kLanes; ++other) {
        if (!brought[other]) continue;
        block.threads_[first + other]->peers = brought;
        block.threads_[first + other]->state = Thread::State::ready;
    }
    return thread.peers.data();
}

void sync_warp(unsigned mask, Location where) {
    Thread& thread = current();
    // The tokens are those of the warp's first lane. Which of the two is counted by the thread itself, since
    // lanes outside of the mask do not take part.
    Thread& first = *thread.block->threads_[thread.index - thread.index % kLanes];
    char* const token = &first.warp_tokens[thread.warp_syncs++ % 2];
    order_before(token);
    exchange(nullptr, 0, mask, "sync_warp", where);
    order_after(token);
}

void fail(const std::string& problem, Location where) {
    Thread& thread = current();
    thread.block->problem_ = problem + "\n  thread " + std::to_string(thread.index) + " at " + place(where);
    thread.fiber.suspend();
    std::abort();  // it is not resumed
}

std::string Block::describe_waiting() const {
    // (what, where) -> how many threads, the first of them
    std::map<std::string, std::pair<int, int>> groups;
    for (int i = 0; i < size; ++i) {
        const Thread& thread = *threads_[i];
        std::string what;
        switch (thread.state) {
            case Thread::State::finished:
                what = "have ended";
                break;
            case Thread::State::ready:
                what = "run";
                break;
            case Thread::State::at_barrier:
                what = "wait in sync_threads at " + place(thread.where);
                break;
            case Thread::State::at_warp_operation:
                what = std::string("wait in ") + thread.operation + " (mask " + hex(thread.mask) + ") at " +
                       place(thread.where);
        }
        auto [group, is_new] = groups.try_emplace(what, 0, i);
        ++group->second.first;
    }
    std::string text;
    for (const auto& [what, threads] : groups) {
        text += "\n  " + std::to_string(threads.first) + " threads, the first is " +
                std::to_string(threads.second) + ", " + what;
    }
    return text;
}

void Block::report(const std::string& problem) const {
    const auto number = [&](int axis) { return std::to_string(index[axis]); };
    throw KernelError("kernel " + kernel_ + ", block (" + number(0) + ", " + number(1) + ", " + number(2) +
                      "): " + problem);
}

}  // namespace ck::emulator
