// SPDX-License-Identifier: MIT
// This machine's CPU in the place of a device.
#include "cuda/runtime.h"

namespace ck {

DeviceGuard::DeviceGuard(int) : previous_(-1) {}
DeviceGuard::~DeviceGuard() = default;

// Few, so that work that is split by it is split in small tests too.
int multiprocessor_count() { return 4; }

// Of compute capability 8.0.
int shared_memory_limit() { return 163 * 1024; }

std::string why_not(int) { return ""; }

std::string cuda_version() { return "emulated"; }

}  // namespace ck
