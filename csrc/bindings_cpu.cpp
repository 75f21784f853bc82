// SPDX-License-Identifier: MIT
// Python bindings of the CPU kernels: pointers, sizes and strides in, nothing else.
#include <pybind11/pybind11.h>

static const char* isa() {
#ifdef CK_HAVE_V4
    if (__builtin_cpu_supports("x86-64-v4")) return "v4";
#endif
#ifdef CK_HAVE_V3
    if (__builtin_cpu_supports("x86-64-v3")) return "v3";
#endif
    return "baseline";
}

PYBIND11_MODULE(_C_cpu, module) {
    module.def("isa", &isa, "The instruction set level that the kernels run with on this machine.");
}
