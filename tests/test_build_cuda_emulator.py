"""`python setup.py build_cuda_emulator`: the CUDA kernels for this machine's processor."""

import pytest
from scratch_tree import SUFFIX, compiled, needs_compiler, python, scratch_tree

BINDINGS = """
#include <Python.h>
int twice(int);
#ifdef CK_EMULATED
static PyObject* call(PyObject*, PyObject* argument) { return PyLong_FromLong(twice(PyLong_AsLong(argument))); }
static PyMethodDef methods[] = {{"twice", call, METH_O, nullptr}, {}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda_emulator", nullptr, -1, methods};
PyMODINIT_FUNC PyInit__C_cuda_emulator() { return PyModule_Create(&definition); }
#endif
"""
SOURCES = {
    "bindings_cuda.cpp": BINDINGS,
    "op/cuda/twice.cu": "int factor();\nint twice(int value) { return factor() * value; }\n",
    "cuda_emulator/runtime.cpp": "int factor() { return 2; }\n",
    # What no install may touch, nor this build.
    "bindings_cpu.cpp": "#error not of this build\n",
    "cuda/runtime.cu": "#error not of this build\n",
}

pytestmark = needs_compiler


@pytest.fixture
def tree(tmp_path):
    return scratch_tree(tmp_path / "a $tree", SOURCES)


def build_cuda_emulator(tree, check=True):
    """What was printed; the last line is the path of what was built."""
    return python("setup.py", "--quiet", "build_cuda_emulator", cwd=tree, check=check)


def test_module_is_built_from_kernels_and_emulator(tree):
    printed = build_cuda_emulator(tree).stdout
    assert compiled(printed) == ["bindings_cuda.cpp", "runtime.cpp", "twice.cu"]
    module = printed.splitlines()[-1]
    assert module.endswith(f"/cuda_emulator/_C_cuda_emulator{SUFFIX}")
    program = f"import sys; sys.path.insert(0, {module.rpartition('/')[0]!r}); import _C_cuda_emulator as m"
    assert python("-c", f"{program}; print(m.twice(21))", cwd=tree).stdout == "42\n"
    assert "no work to do" in build_cuda_emulator(tree).stdout


def test_a_kernel_that_does_not_compile_is_an_error(tree):
    (tree / "csrc" / "op" / "cuda" / "twice.cu").write_text("#error this line is broken\n")
    done = build_cuda_emulator(tree, check=False)
    assert done.returncode != 0
    assert "this line is broken" in done.stdout
