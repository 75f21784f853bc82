"""What a launch and a device guard of nvcc's half of the device runtime ask of CUDA. It needs no GPU."""

import subprocess
from pathlib import Path

import pytest

from builder import nvcc
from builder.commands import NothingToBuild, run
from builder.project import SOURCES

HERE = Path(__file__).parent
STAND_INS = (
    "cudaLaunchKernel",
    "cudaFuncSetAttribute",
    "cudaDeviceGetAttribute",
    "cudaGetDevice",
    "cudaSetDevice",
)


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """calls(what) -> the lines that the stand-in runtime prints."""
    try:
        compiler = nvcc.find()
    except NothingToBuild as reason:
        pytest.skip(str(reason))
    program = tmp_path_factory.mktemp("launch") / "launch"
    wrapped = [word for name in STAND_INS for word in ("-Xlinker", f"--wrap={name}")]
    flags = ["-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_80", *wrapped]
    run([compiler, *flags, "-I", SOURCES, HERE / "launch.cu", SOURCES / "cuda" / "runtime.cu", "-o", program])

    def ask(what):
        done = subprocess.run([program, what], stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.splitlines()

    return ask


def test_arguments_become_the_types_of_the_parameters(calls):
    """An int in the place of an int64_t would be read with what lies behind it."""
    assert calls("arguments") == ["launch, 4 x 5 x 1 blocks of 32, 0 bytes: -1 2 -3 0.5"]


def test_shared_memory_is_asked_for_once_for_each_kernel_and_device(calls):
    """All that the device has, in front of the first launch that needs some; each time on devices without a note."""
    small, large = (f"launch, 1 x 1 x 1 blocks of 32, {size} bytes" for size in (100, 100000))

    def asked(device):
        return [f"device {device}, dynamic shared memory {1000 + device}", f"device {device}, carve-out 100"]

    assert calls("shared_memory") == [
        "launch, 1 x 1 x 1 blocks of 32, 0 bytes",
        *(*asked(0), small, large),
        *(*asked(1), small, large),
        *(small, large),
        *(*asked(70), small, *asked(70), large),
        *(*asked(70), small, *asked(70), large),
    ]


def test_a_guard_always_sets_the_device(calls):
    """The runtime's belief of what is current is not trusted; afterwards the device before is current again."""
    assert calls("guard") == ["set device 0", "set device 1", "set device 0"]
