// SPDX-License-Identifier: MIT
#include "cuda_emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if !defined(__x86_64__)
#error "the emulator switches stacks on x86-64 only"
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CK_RACE_CHECK)
#include <sanitizer/tsan_interface.h>
#endif

// Saves the registers that a call preserves and the stack pointer, then takes over another stack's.
extern "C" void ck_switch_stack(void** save_stack_pointer, void* stack_pointer);
asm(R"(
.text
.globl ck_switch_stack
.hidden ck_switch_stack
.type ck_switch_stack, @function
ck_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size ck_switch_stack, .-ck_switch_stack
)");

namespace ck::emulator {
namespace {

// AddressSanitizer's red zones make frames several times larger.
constexpr size_t kStackBytes = 256 * 1024;

thread_local Fiber* starting = nullptr;

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

Fiber::Fiber() {
    // Pages are only taken up when touched. The lowest one is a guard: an overflow stops the program.
    const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, kind, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page_bytes(), PROT_NONE) != 0) throw std::bad_alloc();
    stack_ = static_cast<unsigned char*>(memory);
#if defined(CK_RACE_CHECK)
    own_sanitizer_state_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(CK_RACE_CHECK)
    __tsan_destroy_fiber(own_sanitizer_state_);
#endif
    munmap(stack_, kStackBytes);
}

void Fiber::start(void (*entry)(void*), void* argument) {
    entry_ = entry;
    argument_ = argument;
#if defined(__SANITIZE_ADDRESS__)
    // A fiber that was abandoned left the red zones of its frames behind.
    __asan_unpoison_memory_region(stack_ + page_bytes(), kStackBytes - page_bytes());
    own_sanitizer_state_ = nullptr;
#endif
    void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
    *--top = nullptr;  // in place of a return address: the ABI wants rsp ≡ 8 (mod 16) where a function begins
    *--top = reinterpret_cast<void*>(&Fiber::run_current);
    for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
    own_stack_pointer_ = top;
}

void Fiber::run_current() {
    Fiber* const self = starting;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &self->resumer_stack_, &self->resumer_stack_size_);
#endif
    self->entry_(self->argument_);
    self->leave(true);
    std::abort();  // a fiber that ended is not resumed
}

void Fiber::resume() {
    starting = this;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&resumer_sanitizer_state_, stack_, kStackBytes);
#elif defined(CK_RACE_CHECK)
    resumer_sanitizer_state_ = __tsan_get_current_fiber();
    // No synchronization: taking turns on one core must not order the accesses of a block's threads.
    __tsan_switch_to_fiber(own_sanitizer_state_, __tsan_switch_to_fiber_no_sync);
#endif
    ck_switch_stack(&resumer_stack_pointer_, own_stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(resumer_sanitizer_state_, nullptr, nullptr);
#endif
}

void Fiber::leave([[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &own_sanitizer_state_, resumer_stack_,
                                   resumer_stack_size_);
#elif defined(CK_RACE_CHECK)
    __tsan_switch_to_fiber(resumer_sanitizer_state_, __tsan_switch_to_fiber_no_sync);
#endif
    ck_switch_stack(&own_stack_pointer_, resumer_stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(own_sanitizer_state_, &resumer_stack_, &resumer_stack_size_);
#endif
}

}  // namespace ck::emulator
