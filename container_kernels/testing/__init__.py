# SPDX-License-Identifier: MIT
"""What our tests and benchmarks stand on, for the tests of others too: eager equivalents, inputs, error budgets."""

from ..ops.common.tensors import poisoned_outputs
from .budget import assert_within_budget
from .cuda_host import run_cuda_on_host
from .eager import eager_context_aggregation, eager_fused_mlp, eager_local_aggregation, eager_projection
from .inputs import MixCase, MixInputs

__all__ = [
    "MixCase",
    "MixInputs",
    "assert_within_budget",
    "eager_context_aggregation",
    "eager_fused_mlp",
    "eager_local_aggregation",
    "eager_projection",
    "poisoned_outputs",
    "run_cuda_on_host",
]
