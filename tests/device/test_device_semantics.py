"""Both halves of the device runtime do what csrc/cuda/device.h says: the emulated half always, nvcc's on a GPU."""

import subprocess
from pathlib import Path

import pytest
import torch

from builder import cuda
from builder.project import env
from container_kernels import _extension

HERE = Path(__file__).parent
NEEDS_NVCC = pytest.mark.skipif(_extension.cuda is None, reason=str(_extension.why_no_cuda))
CHECKS = 18


def holds(finished: subprocess.CompletedProcess) -> None:
    assert finished.returncode == 0, finished.stdout
    lines = finished.stdout.splitlines()
    assert len(lines) == CHECKS and all(line.startswith("ok") for line in lines), finished.stdout


@pytest.mark.parametrize("sanitizer", [None, "address", "thread"])
def test_emulated_half(emulated_program, sanitizer):
    holds(emulated_program("semantics.cu", sanitizer)())


@NEEDS_NVCC
@pytest.mark.parametrize("source", ["semantics.cu", "run_kernels.cu"])
def test_nvcc_compiles_what_a_gpu_shall_run(tmp_path, source):
    """And links it with the kernels; without a GPU it ends by itself, with the runtime's reason."""
    program = tmp_path / "program"
    cuda.build_program(HERE / source, program, archs="80")
    if not torch.cuda.is_available():
        done = subprocess.run([program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode and "CUDA" in done.stdout, done.stdout


@pytest.mark.gpu
@NEEDS_NVCC
def test_nvcc_half(tmp_path):
    program = tmp_path / "semantics"
    cuda.build_program(HERE / "semantics.cu", program, archs=env.value("CONTAINER_KERNELS_CUDA_ARCHS"))
    holds(subprocess.run([program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
