// What a launch by nvcc's half hands to CUDA, on a machine without a GPU: the linker gives cudaLaunchKernel's
// calls to the function below, which reads the arguments as a GPU does, by the types of the parameters.
#include <cstdio>
#include <cstring>

#include "common/device.h"

using namespace ck;

namespace {

CK_KERNEL(32) kernel(int64_t wide, float real, const int64_t constant, double* out) {
    out[0] = static_cast<double>(wide) + real + static_cast<double>(constant);
}

template <class T>
T read(const void* argument) {
    T value;
    std::memcpy(&value, argument, sizeof(T));
    return value;
}

}  // namespace

extern "C" cudaError_t __wrap_cudaLaunchKernel(const void*, dim3 grid, dim3 block, void** arguments,
                                               size_t shared_bytes, cudaStream_t) {
    std::printf("%lld %g %lld %g, %u x %u x %u blocks of %u, %zu bytes\n", read<long long>(arguments[0]),
                read<float>(arguments[1]), read<long long>(arguments[2]), *read<double*>(arguments[3]),
                grid.x, grid.y, grid.z, block.x, shared_bytes);
    return cudaSuccess;
}

int main() {
    double out = 0.5;
    const short constant = -3;
    launch<kernel>({4, 5}, 32, 100, nullptr, -1, 2, constant, &out);
}
