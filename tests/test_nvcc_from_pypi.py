"""CONTAINER_KERNELS_NVCC=pypi for real: pip fetches nvcc's wheels (100 MB) into its isolated environment."""

import os
import shutil
import zipfile

import pytest
from scratch_tree import OUTSIDE, build, executable, needs_compiler, python, read_record, scratch_tree

# The runtime is called, so that it has to be linked.
KERNEL = """
__global__ void kernel(int* value) { *value *= 2; }
int runtime_version() {
    int version = 0;
    cudaRuntimeGetVersion(&version);
    return version;
}
"""
CUDA_BINDINGS = """
#include <Python.h>
int runtime_version();
static PyObject* call(PyObject*, PyObject*) { return PyLong_FromLong(runtime_version()); }
static PyMethodDef methods[] = {{"runtime_version", call, METH_NOARGS, nullptr}, {}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods};
PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&definition); }
"""
CPU_BINDINGS = """
#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cpu", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C_cpu() { return PyModule_Create(&definition); }
"""
SOURCES = {"bindings_cpu.cpp": CPU_BINDINGS, "bindings_cuda.cpp": CUDA_BINDINGS, "op/cuda/kernel.cu": KERNEL}


@pytest.mark.slow
@needs_compiler
def test_wheels_alone_build_the_cuda_module(tmp_path):
    """Whatever toolkit this machine has is hidden: a broken one lies first wherever a system's nvcc is looked for."""
    tree = scratch_tree(tmp_path / "a $tree", SOURCES)
    nvcc = executable(tmp_path / "broken" / "bin" / "nvcc", "exit 1")
    hidden = {
        "PATH": f"{nvcc.parent}{os.pathsep}{OUTSIDE['PATH']}",
        "CUDA_HOME": nvcc.parent.parent,
        "CUDA_PATH": nvcc.parent.parent,
        "CONTAINER_KERNELS_BUILD_CUDA": "1",
    }
    assert not build(tree, **hidden)[0]["cuda"]["built"], "the machine's toolkit is not hidden"
    shutil.rmtree(tree / "build")

    wish = {"CONTAINER_KERNELS_NVCC": "pypi", "CONTAINER_KERNELS_REQUIRE_EXT": "1"}
    python(*("-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, "."), cwd=tree, **hidden, **wish)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    cuda = read_record(tmp_path / "site")["cuda"]
    assert cuda["built"]
    assert "/site-packages/nvidia/" in cuda["nvcc"], cuda
    assert cuda["compiler_version"].startswith("nvcc 13.0")
    program = "import _C_cuda; print(_C_cuda.runtime_version())"
    assert python("-c", program, cwd=tmp_path / "site" / "container_kernels").stdout.strip() == "13000"
