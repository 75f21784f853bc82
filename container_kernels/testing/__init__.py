# SPDX-License-Identifier: MIT
"""Base of tests and benchmarks, ours and those of others: eager equivalents, inputs, error budgets."""

from ..ops.common.tensors import poisoned_outputs
from .budget import assert_within_budget
from .cuda_emulator import emulate_cuda
from .eager import (
    eager_context_aggregation,
    eager_deformable_attention,
    eager_fused_mlp,
    eager_local_aggregation,
    eager_projection,
)
from .inputs import MixCase, MixInputs

# The name before version 0.1.0.
run_cuda_on_host = emulate_cuda

__all__ = [
    "MixCase",
    "MixInputs",
    "assert_within_budget",
    "eager_context_aggregation",
    "eager_deformable_attention",
    "eager_fused_mlp",
    "eager_local_aggregation",
    "eager_projection",
    "emulate_cuda",
    "poisoned_outputs",
    "run_cuda_on_host",
]
