"""Both halves of the device runtime do what csrc/common/device.h says: the host half always, nvcc's on a GPU."""

import subprocess
from pathlib import Path

import pytest
import torch

from builder.project import SOURCES

HERE = Path(__file__).parent
CHECKS = 14


def holds(finished: subprocess.CompletedProcess) -> None:
    assert finished.returncode == 0, finished.stdout
    lines = finished.stdout.splitlines()
    assert len(lines) == CHECKS and all(line.startswith("ok") for line in lines), finished.stdout


@pytest.mark.parametrize("sanitizer", [None, "address", "thread"])
def test_host_half(host_program, sanitizer):
    holds(host_program("semantics.cu", sanitizer)())


@pytest.mark.gpu
def test_nvcc_half(tmp_path):
    from builder.cuda import find_nvcc

    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    major, minor = torch.cuda.get_device_capability()
    program = tmp_path / "semantics"
    command = [nvcc, "-std=c++20", "--expt-relaxed-constexpr", f"-arch=sm_{major}{minor}", "-I", SOURCES]
    subprocess.run([*command, HERE / "semantics.cu", SOURCES / "common" / "runtime.cu", "-o", program], check=True)
    holds(subprocess.run([program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
