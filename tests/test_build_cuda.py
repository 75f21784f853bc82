"""setup.py and CUDA: when the CUDA module is built, by which nvcc, for which GPUs, and what becomes of a failure.

A shell script stands for nvcc (it compiles with the C++ compiler), so that every decision is tested without a toolkit;
one test builds with a real one.
"""

import shutil

import pytest
from scratch_tree import (
    COMPILER,
    SUFFIX,
    build,
    compiled,
    executable,
    needs_compiler,
    python,
    read_record,
    scratch_tree,
)

CPU_BINDINGS = """
#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cpu", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C_cpu() { return PyModule_Create(&definition); }
"""
CUDA_BINDINGS = """
#include <Python.h>
int twice(int);
static PyObject* call(PyObject*, PyObject* argument) { return PyLong_FromLong(twice(PyLong_AsLong(argument))); }
static PyMethodDef methods[] = {{"twice", call, METH_O, nullptr}, {}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods};
PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&definition); }
"""
SOURCES = {
    "bindings_cpu.cpp": CPU_BINDINGS,
    "bindings_cuda.cpp": CUDA_BINDINGS,
    "common/factor.h": "constexpr int factor = 2;\n",
    "op/cuda/twice.cu": '#include "common/factor.h"\nint twice(int value) { return factor * value; }\n',
}
MODULE = f"_C_cuda{SUFFIX}"
CUDA = {"CONTAINER_KERNELS_BUILD_CUDA": "1"}


@pytest.fixture
def tree(tmp_path):
    """One kernel, and a blank and a dollar in the path."""
    return scratch_tree(tmp_path / "a $tree", SOURCES)


def fake_toolkit(root, libraries="lib64", extra=""):
    """A toolkit whose nvcc compiles .cu files as C++, and says so; `extra` is shell that goes first."""
    (root / libraries).mkdir(parents=True)
    # An empty archive.
    (root / libraries / "libcudart_static.a").write_text("!<arch>\n")
    return executable(
        root / "bin" / "nvcc",
        f"""
{extra}
case "$*" in
*--version*) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit;;
*--list-gpu-code*) printf 'sm_%s\n' 80 86 89 90 100 120; exit;;
*-arch=native*--dryrun*) echo "nvcc warning : Cannot find valid GPU for '-arch=native', default arch is used"; exit;;
*--dryrun*) echo '#$ TOP={root}'; echo '#$ LIBRARIES=  "-L{root}/nowhere"'; exit;;
*" -E "*) exit;;
esac
while [ $# -gt 0 ]; do
    case "$1" in -I) include=$2;; -c) source=$2;; -o) output=$2;; -MF) depfile=$2;; esac
    shift
done
echo "ptxas info    : Used 8 registers"
exec {COMPILER} -x c++ -fPIC -I "$include" -MMD -MF "$depfile" -c "$source" -o "$output"
""",
    )


@pytest.fixture
def toolkit(tmp_path):
    """CUDA_HOME of a stand-in toolkit."""
    root = tmp_path / "toolkit"
    fake_toolkit(root)
    return {"CUDA_HOME": root, **CUDA}


def without_nvcc(tree, **variables):
    """A build on a machine that has no nvcc anywhere; the record and what was printed."""
    program = """
import runpy, shutil, sys
which = shutil.which
shutil.which = lambda name, **options: None if name == "nvcc" else which(name, **options)
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
    printed = python("-c", program, cwd=tree, **CUDA, **variables).stdout
    return read_record(tree), printed


def call_twice(tree):
    return python("-c", "import _C_cuda; print(_C_cuda.twice(21))", cwd=tree / "container_kernels").stdout.strip()


@needs_compiler
@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_cuda_module_is_built_by_the_named_toolkit(tree, tmp_path, variable):
    nvcc = fake_toolkit(tmp_path / "toolkit")
    others = {"CUDA_HOME": "", "CUDA_PATH": ""}
    record, printed = build(tree, **CUDA, **(others | {variable: nvcc.parent.parent}))
    cuda = record["cuda"]
    assert (cuda["built"], cuda["nvcc"], cuda["compiler_version"]) == (True, str(nvcc), "nvcc 13.0, V13.0.88"), printed
    assert (
        "arch=compute_80,code=[sm_80,sm_100,sm_120,compute_80]' -gencode arch=compute_90a,code=sm_90a" in cuda["flags"]
    )
    assert cuda["archs"] == "80+100+120+PTX;90a"
    assert record["cpu"]["built"]
    assert call_twice(tree) == "42"
    # What ptxas says about every kernel is kept for the tests that have a budget of registers.
    (log,) = (tree / "build").glob("*/cuda/op/cuda/twice.cu.log")
    assert log.read_text() == "ptxas info    : Used 8 registers\n"


@needs_compiler
def test_a_repeat_compiles_what_changed(tree, toolkit):
    first = build(tree, **toolkit)[1]
    assert compiled(first) == ["bindings_cpu.cpp", "bindings_cuda.cpp", "twice.cu"]
    assert compiled(build(tree, **toolkit)[1]) == []
    (tree / "csrc" / "common" / "factor.h").write_text("constexpr int factor = 3;\n")
    assert compiled(build(tree, **toolkit)[1]) == ["twice.cu"]
    assert call_twice(tree) == "63"


@needs_compiler
def test_without_nvcc_the_cpu_module_alone_is_built(tree):
    """And nothing of the CUDA side is compiled, also not for the host; that is no failure of a required extension."""
    record, printed = without_nvcc(tree, CONTAINER_KERNELS_REQUIRE_EXT="1")
    reason = "no nvcc under CUDA_HOME, CUDA_PATH, on PATH or in /usr/local/cuda"
    assert record["cuda"] == {"built": False, "reason": reason, "nvcc": None}
    assert record["cpu"]["built"]
    assert compiled(printed) == ["bindings_cpu.cpp"]


@needs_compiler
def test_cuda_can_be_turned_off(tree, toolkit):
    stale = tree / "container_kernels" / MODULE
    stale.touch()
    record, printed = build(tree, **(toolkit | {"CONTAINER_KERNELS_BUILD_CUDA": "0"}))
    assert record["cuda"]["reason"] == "turned off by CONTAINER_KERNELS_BUILD_CUDA"
    assert compiled(printed) == ["bindings_cpu.cpp"]
    assert not stale.exists(), "a module of an earlier build was left behind"


def test_no_extension_means_no_cuda_module(tree, toolkit):
    record, _ = build(tree, **toolkit, CONTAINER_KERNELS_BUILD_EXT="0")
    assert record["cuda"] == {"built": False, "reason": "turned off by CONTAINER_KERNELS_BUILD_EXT", "nvcc": None}


@needs_compiler
def test_a_kernel_that_does_not_compile(tree, toolkit):
    """The package installs with the CPU module and the reason, unless the extension is required."""
    (tree / "csrc" / "op" / "cuda" / "twice.cu").write_text("#error this line is broken\n")
    record, _ = build(tree, **toolkit)
    assert record["cpu"]["built"] and not record["cuda"]["built"]
    assert "this line is broken" in record["cuda"]["reason"]
    assert "nvcc" in record["cuda"]["reason"].splitlines()[0], "the reason starts with the command that failed"
    command = ("setup.py", "build_ext", "--inplace")
    done = python(*command, cwd=tree, check=False, **toolkit, CONTAINER_KERNELS_REQUIRE_EXT="1")
    assert done.returncode != 0
    assert "CONTAINER_KERNELS_REQUIRE_EXT is set, but container_kernels._C_cuda is not built" in done.stdout


@needs_compiler
def test_nvcc_gets_our_compiler_unless_it_refuses_it(tree, tmp_path):
    fake_toolkit(tmp_path / "liberal")
    assert f"-ccbin {COMPILER} -Xcompiler=-m64" in flags(tree, tmp_path / "liberal", CXX=f"{COMPILER} -m64")
    refuses = 'case "$*" in *-ccbin*) echo "error: unsupported GNU version"; exit 1;; esac'
    fake_toolkit(tmp_path / "strict", extra=refuses)
    assert "-ccbin" not in flags(tree, tmp_path / "strict")
    assert call_twice(tree) == "42"


@needs_compiler
def test_archs_can_be_chosen(tree, toolkit):
    chosen = flags(tree, toolkit["CUDA_HOME"], CONTAINER_KERNELS_CUDA_ARCHS="8.6, 90A+ptx;120f 80+8.9")
    expected = [
        "arch=compute_86,code=sm_86",
        "'arch=compute_90a,code=[sm_90a,compute_90a]'",
        "arch=compute_120f,code=sm_120f",
        "'arch=compute_80,code=[sm_80,sm_89]'",
    ]
    assert [word for word in chosen.split() if "arch=" in word] == expected


@needs_compiler
def test_a_default_that_nvcc_is_too_old_for_is_left_out(tree, tmp_path):
    """Unlike one that was asked for."""
    knows = "*--list-gpu-code*) printf 'sm_%s\\n' 80 90; exit;;"
    older = f'case "$*" in {knows} *sm_120*) echo "error: sm_120"; exit 1;; esac'
    fake_toolkit(tmp_path / "older", extra=older)
    record, printed = build(tree, **CUDA, CUDA_HOME=tmp_path / "older")
    assert record["cuda"]["built"], printed
    assert record["cuda"]["archs"] == "80+PTX;90a"
    asked = {"CONTAINER_KERNELS_CUDA_ARCHS": "80;120"}
    assert "error: sm_120" in build(tree, **CUDA, CUDA_HOME=tmp_path / "older", **asked)[0]["cuda"]["reason"]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CONTAINER_KERNELS_CUDA_ARCHS": "80;hopper"}, "or entries such as 80, 90a, 80+PTX, 80+86, got 'hopper'"),
        ({"CONTAINER_KERNELS_CUDA_ARCHS": "75"}, "the kernels need 80 or higher, got '75'"),
        ({"CONTAINER_KERNELS_CUDA_ARCHS": "80+75"}, "the kernels need 80 or higher, got '80+75'"),
        ({"CONTAINER_KERNELS_CUDA_ARCHS": "PTX"}, "or entries such as 80, 90a, 80+PTX, 80+86, got 'PTX'"),
        ({"CONTAINER_KERNELS_CUDA_ARCHS": "native"}, "is native, but this machine has no GPU"),
        ({"CONTAINER_KERNELS_NVCC": "conda"}, "CONTAINER_KERNELS_NVCC must be system or pypi, got 'conda'"),
    ],
)
@needs_compiler
def test_a_wish_that_cannot_be_met_is_recorded(tree, toolkit, variables, reason):
    record, _ = build(tree, **toolkit, **variables)
    assert not record["cuda"]["built"]
    assert reason in record["cuda"]["reason"]


def flags(tree, cuda_home, **variables):
    """The flags of a CUDA build, which must succeed."""
    cuda = build(tree, **CUDA, CUDA_HOME=cuda_home, **variables)[0]["cuda"]
    assert cuda["built"], cuda
    return cuda["flags"]


@needs_compiler
def test_nvcc_of_the_wheels_is_taken_where_asked_for(tree, tmp_path, toolkit):
    """The wheels' nvcc tells a library folder that they do not have; the system's toolkit is not looked at."""
    nvcc = fake_toolkit(tmp_path / "site" / "nvidia" / "cu13", libraries="lib")
    system = fake_toolkit(tmp_path / "broken", extra="exit 1").parent.parent
    variables = {"CUDA_HOME": system, "PYTHONPATH": tmp_path / "site", "CONTAINER_KERNELS_NVCC": "pypi"}
    record, printed = build(tree, **(toolkit | variables))
    assert record["cuda"]["nvcc"] == str(nvcc)
    assert record["cuda"]["built"], record
    assert f"-L{nvcc.parent.parent}/lib " in printed
    assert call_twice(tree) == "42"


@needs_compiler
def test_missing_wheels_are_named(tree, toolkit):
    command = ("setup.py", "build_ext", "--inplace")
    wish = {"CONTAINER_KERNELS_NVCC": "pypi", "CONTAINER_KERNELS_REQUIRE_EXT": "1"}
    done = python(*command, cwd=tree, check=False, **toolkit, **wish)
    assert done.returncode != 0, "what was asked for is not there"
    assert "first: pip install nvidia-cuda-nvcc==" in done.stdout
    assert "CONTAINER_KERNELS_REQUIRE_EXT is set" in done.stdout


def test_pip_is_told_to_fetch_the_wheels_only_where_asked_for(tree):
    program = """
from builder import backend
print(*backend.get_requires_for_build_wheel(), *backend.get_requires_for_build_editable(), sep="\\n")
"""
    assert "nvidia" not in python("-c", program, cwd=tree).stdout
    asked = python("-c", program, cwd=tree, CONTAINER_KERNELS_NVCC="pypi").stdout.splitlines()
    assert asked.count("nvidia-cuda-nvcc==13.0.*") == 2
    assert len([line for line in asked if line.startswith("nvidia-")]) == 10


@needs_compiler
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
def test_a_real_nvcc(tree):
    """Code for the GPUs named and PTX, registers in the log, and a module that imports without a driver."""
    kernel = "__global__ void kernel(float* x) { x[threadIdx.x] *= 2; }\n"
    launch = "int twice(int value) { int count; cudaGetDeviceCount(&count); return 2 * value; }\n"
    (tree / "csrc" / "op" / "cuda" / "twice.cu").write_text(kernel + launch)
    record, _ = build(tree, **CUDA)
    assert record["cuda"]["built"], record
    assert call_twice(tree) == "42"
    (log,) = (tree / "build").glob("*/cuda/op/cuda/twice.cu.log")
    for arch in ("sm_80", "sm_100", "sm_120", "sm_90a"):
        assert f"for '{arch}'" in log.read_text()
    assert "Used " in log.read_text()
