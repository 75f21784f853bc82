// SPDX-License-Identifier: MIT
// A fiber: a call stack of its own that runs until it switches away. The sanitizers are told of every switch.
#pragma once

#include <cstddef>

namespace ck::emulator {

class Fiber {
  public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // Start over: the next `resume` calls entry(argument). What the fiber was doing before is forgotten.
    void start(void (*entry)(void*), void* argument);

    // Run the fiber until it suspends or its entry returns.
    void resume();

    // Called on the fiber: go back to whoever resumed it.
    void suspend() { leave(false); }

  private:
    static void run_current();
    void leave(bool for_good);

    unsigned char* stack_;
    void (*entry_)(void*) = nullptr;
    void* argument_ = nullptr;
    void* own_stack_pointer_ = nullptr;
    void* resumer_stack_pointer_ = nullptr;
    // What the sanitizers keep for a stack that is not running.
    void* own_sanitizer_state_ = nullptr;
    void* resumer_sanitizer_state_ = nullptr;
    const void* resumer_stack_ = nullptr;
    size_t resumer_stack_size_ = 0;
};

}  // namespace ck::emulator
