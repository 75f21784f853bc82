"""The backends under test and where each runs on this machine."""

import torch

GPU = torch.cuda.is_available()

# backend -> device its kernels are executed on here
DEVICES = {"reference": "cpu", "cpu": "cpu", "triton": "cuda" if GPU else "cpu"}
FUSED = ("cpu", "triton")
ALL = tuple(DEVICES)

# The kernels' dtypes; Triton has no float64.
DTYPES = {
    "reference": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    "cpu": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}


def backends_and_dtypes(backends=ALL):
    return [(backend, dtype) for backend in backends for dtype in DTYPES[backend]]


def dtype_name(value) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None
