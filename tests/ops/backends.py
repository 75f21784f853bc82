"""The backends under test and where each runs on this machine.

Without a GPU, Triton's kernels run in its interpreter. The CUDA kernels need a module that nvcc built, too: without one
they run on this machine's processor (conftest.py), also beside a GPU.
"""

import torch

from container_kernels import usable_backends
from container_kernels.ops.fused_mlp.backends import COMPILED as FUSED_MLP
from container_kernels.ops.projection.backends import COMPILED as FUSED_PROJECTION
from container_kernels.testing import MixCase

GPU = torch.cuda.is_available()
CUDA_ON_GPU = usable_backends()["cuda"] is None

# Without a GPU Triton's kernels are Python: the same bits in any run, and seconds for what a GPU does in microseconds.
INTERPRETED = not GPU

# backend -> device its kernels are executed on here
DEVICES = {
    "reference": "cpu",
    "cpu": "cpu",
    "triton": "cuda" if GPU else "cpu",
    "cuda": "cuda" if CUDA_ON_GPU else "cpu",
}
FUSED = ("cpu", "triton", "cuda")
ALL = tuple(DEVICES)
# Those that have a dense affinity beside the dynamic term.
DENSE = ("reference", "cpu", "triton")

# Those of the ops that work on each token alone.
MLP = ("reference", *FUSED_MLP)
PROJECTION = ("reference", *FUSED_PROJECTION)

# The kernels' dtypes; those for GPUs have no float64.
DTYPES = {
    "reference": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    "cpu": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def backends_and_dtypes(backends=ALL):
    return [(backend, dtype) for backend in backends for dtype in DTYPES[backend]]


def serves(backend: str, case: MixCase) -> bool:
    """Whether `backend` takes the case, by what its documentation says."""
    return backend != "cuda" or not case.dynamic or (case.head_dim <= 128 and not case.dense)


def served(cases, backends=ALL):
    """(backend, case) for every case that a backend takes."""
    return [(backend, case) for backend in backends for case in cases if serves(backend, case)]


def dtype_name(value) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def identifier(value) -> str | None:
    return str(value) if isinstance(value, MixCase | tuple) else dtype_name(value)
