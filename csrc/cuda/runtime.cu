// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/runtime.h"

namespace ck {
namespace {

int current_device() {
    int device;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    return device;
}

int attribute(cudaDeviceAttr which) {
    int value;
    check_cuda(cudaDeviceGetAttribute(&value, which, current_device()), "cudaDeviceGetAttribute");
    return value;
}

std::string version_name(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Any kernel of this build: whether the device has code for one is whether it has code for all.
__global__ void probe() {}

}  // namespace

// Always: this runtime is linked in and not the one that torch sets devices through, so what it believes to
// be current need not be.
DeviceGuard::DeviceGuard(int device) : previous_(current_device()) {
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
}

// Only where it was changed: on a device that nobody uses, this would create a context.
DeviceGuard::~DeviceGuard() {
    int device;
    if (cudaGetDevice(&device) == cudaSuccess && device != previous_) cudaSetDevice(previous_);
}

void SharedMemoryLimits::raise(const void* kernel) {
    const int device = current_device();
    const bool is_noted = device < kNotedDevices;
    if (is_noted && raised_[device].load(std::memory_order_acquire)) return;
    // The most there is rather than what this launch needs: a kernel has one such attribute, which another
    // thread would set to less before this launch.
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_memory_limit()),
        "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)");
    // The most again: kernels are designed for several blocks per multiprocessor, which its shared memory has
    // to hold, and copy past L1. One value for all of them, since a multiprocessor may have to be idle to
    // change it.
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                    cudaSharedmemCarveoutMaxShared),
               "cudaFuncSetAttribute(PreferredSharedMemoryCarveout)");
    if (is_noted) raised_[device].store(true, std::memory_order_release);
}

int multiprocessor_count() { return attribute(cudaDevAttrMultiProcessorCount); }
int shared_memory_limit() { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

std::string why_not(int device) {
    const std::string built = "built for CUDA " + cuda_version();
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return built + ", there is no driver";
    // Within a major version every driver runs the code of every toolkit.
    if (driver / 1000 < CUDART_VERSION / 1000) return built + ", the driver supports " + version_name(driver);
    try {
        const DeviceGuard guard(device);
        cudaFuncAttributes attributes;
        check_cuda(cudaFuncGetAttributes(&attributes, probe), "cudaFuncGetAttributes");
    } catch (const std::runtime_error& error) {
        cudaGetLastError();  // or the next call would report it
        return built + "; device " + std::to_string(device) + ": " + error.what();
    }
    return "";
}

std::string cuda_version() { return version_name(CUDART_VERSION); }

}  // namespace ck
