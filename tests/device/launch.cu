// What launches and device guards ask of CUDA, on a machine without a GPU: the linker gives their calls to
// the functions below, which print them. Arguments are read as a GPU does, by the types of the parameters.
#include <cstdio>
#include <cstring>
#include <string>

#include "cuda/device.h"

using namespace ck;

namespace {

CK_KERNEL(32) kernel(int64_t wide, float real, const int64_t constant, double* out) {
    out[0] = static_cast<double>(wide) + real + static_cast<double>(constant);
}
CK_KERNEL(32) other_kernel(int) {}

int current = 0;  // device, as the stand-in runtime believes
bool shows_arguments = false;

template <class T>
T read(const void* argument) {
    T value;
    std::memcpy(&value, argument, sizeof(T));
    return value;
}

}  // namespace

extern "C" cudaError_t __wrap_cudaLaunchKernel(const void*, dim3 grid, dim3 block, void** arguments,
                                               size_t shared_bytes, cudaStream_t) {
    std::printf("launch, %u x %u x %u blocks of %u, %zu bytes", grid.x, grid.y, grid.z, block.x,
                shared_bytes);
    if (shows_arguments) {
        std::printf(": %lld %g %lld %g", read<long long>(arguments[0]), read<float>(arguments[1]),
                    read<long long>(arguments[2]), *read<double*>(arguments[3]));
    }
    std::puts("");
    return cudaSuccess;
}
extern "C" cudaError_t __wrap_cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
    const bool is_carveout = attribute == cudaFuncAttributePreferredSharedMemoryCarveout;
    std::printf("device %d, %s %d\n", current, is_carveout ? "carve-out" : "dynamic shared memory", value);
    return cudaSuccess;
}
extern "C" cudaError_t __wrap_cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
    *value = 1000 + device;
    return cudaSuccess;
}
extern "C" cudaError_t __wrap_cudaGetDevice(int* device) {
    *device = current;
    return cudaSuccess;
}
extern "C" cudaError_t __wrap_cudaSetDevice(int device) {
    std::printf("set device %d\n", device);
    current = device;
    return cudaSuccess;
}

int main(int, char** argv) {
    const std::string what = argv[1];
    if (what == "arguments") {
        shows_arguments = true;
        double out = 0.5;
        const short constant = -3;
        launch<kernel>({4, 5}, 32, 0, nullptr, -1, 2, constant, &out);
    } else if (what == "shared_memory") {
        launch<other_kernel>({1}, 32, 0, nullptr, 0);
        for (int device : {0, 1, 0, 70, 70}) {
            current = device;
            for (size_t bytes : {100, 100000}) launch<other_kernel>({1}, 32, bytes, nullptr, 0);
        }
    } else {
        for (int device : {0, 1}) const DeviceGuard guard(device);
    }
}
