// SPDX-License-Identifier: MIT
// The device that kernels run on: its streams, its facts, and which one is current. runtime.cu asks CUDA;
// cuda_emulator/runtime.cpp is this machine's CPU in its place.
#pragma once

#include <string>

namespace ck {

// A cudaStream_t. Emulated, there are no streams: null.
using Stream = void*;

// Makes a device current for this thread, and the previous one when it goes. Emulated, the index is -1.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device);
    ~DeviceGuard();
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int previous_;
};

// Of the current device. These throw std::runtime_error when there is none.
int multiprocessor_count();
// The most bytes of shared memory that one block can ask for.
int shared_memory_limit();

// Why the kernels cannot run on a device (no driver, one too old, no code for it); empty when they can.
std::string why_not(int device);

// The CUDA version that the kernels were compiled with, as "13.0"; "emulated" in the emulator.
std::string cuda_version();

}  // namespace ck
