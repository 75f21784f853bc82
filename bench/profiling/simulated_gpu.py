# SPDX-License-Identifier: MIT
"""Simulates a network on an NVIDIA GPU, on a machine without one: operators, shapes and dtypes, no numbers.

Fake tensors stand for the GPU's. They say that they lie on the CPU, because autograd's engine asks the driver about
any other device; what depends on the device is made as it is there: autocast, the optimizer's loops, our choice of
backends.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.problems.networks import ModelProblem
from bench.profiling import operator_costs
from container_kernels.ops.context_aggregation import backends as mix_backends
from container_kernels.ops.dispatch import backend, preference

# Of what the networks call, what autocast runs in float32 on a GPU and on a CPU does not.
_FLOAT32 = {F.layer_norm, Tensor.softmax, F.cross_entropy}


@dataclass(frozen=True)
class SimulatedProblem(ModelProblem):
    """A model in bfloat16 on a GPU, for use within `simulated_gpu`; its fake tensors name the device "cpu"."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    @property
    def optimizer_options(self) -> dict[str, bool]:
        return {"foreach": True}  # the default on a GPU

    def autocast(self) -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16)


@contextmanager
def simulated_gpu() -> Iterator[FakeTensorMode]:
    """Within it tensors are fake, and what depends on the device is as on a GPU of compute capability 9.0."""
    rows = tuple(row._replace(device_type="cpu") for row in preference.ROWS if row.device_type == "cuda")
    mode = FakeTensorMode()
    with ExitStack() as stack:
        for context in (
            mock.patch.object(preference, "ROWS", rows),
            mock.patch.object(backend, "_cuda_emulated", True),
            mock.patch.object(backend, "_TRITON_INTERPRETED", True),
            mock.patch.object(mix_backends, "_most_tokens", lambda *_: 256),
            mode,
            _Answers(),
            _Autocast(),
        ):
            stack.enter_context(context)
        yield mode


class _Answers(TorchDispatchMode):
    """A fake tensor has no values; a question for one is answered with no, or 1."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if operator_costs.synchronizes(function):
            return False if arguments[0].dtype == torch.bool else 1
        return function(*arguments, **(keywords or {}))


class _Autocast(TorchFunctionMode):
    """Autocast of a CPU with the list of float32 operations that a GPU's has."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function in _FLOAT32 and torch.is_autocast_enabled("cpu"):
            arguments = (arguments[0].float(), *arguments[1:])
        return function(*arguments, **(keywords or {}))
