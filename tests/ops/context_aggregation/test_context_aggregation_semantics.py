"""One tiny case worked out by hand for each clause of the definition, on every backend."""

import math

import pytest
import torch
from backends import ALL, DENSE, DEVICES

from container_kernels import context_aggregation

pytestmark = pytest.mark.parametrize("backend", ALL)


def tokens(values, backend):
    """(1, N, 1, 1): one image, one head, one channel."""
    return torch.tensor(values, dtype=torch.float32, device=DEVICES[backend]).view(1, -1, 1, 1)


def check(actual, expected):
    torch.testing.assert_close(actual.flatten().cpu(), torch.tensor(expected, dtype=torch.float32))


def test_equal_scores_average_the_values(backend):
    zero = tokens([0, 0, 0], backend)
    check(context_aggregation(zero, zero, tokens([3, 6, 9], backend), backend=backend), [6, 6, 6])


def test_softmax_runs_over_keys(backend):
    """q = 1, k = (0, ln 3): weights 1/4 and 3/4."""
    q, k = tokens([1, 1], backend), tokens([0, math.log(3)], backend)
    check(context_aggregation(q, k, tokens([4, 8], backend), backend=backend), [7, 7])


def test_scale_defaults_to_one_over_root_head_dim(backend):
    """head_dim 4, q·k = 2 ln 3 for the second key: the default scale 1/2 makes it ln 3."""
    q = torch.ones(1, 2, 1, 4, device=DEVICES[backend])
    k = torch.zeros_like(q)
    k[0, 1] = math.log(3) / 2
    v = tokens([4, 8], backend).expand(1, 2, 1, 4)
    check(context_aggregation(q, k, v, backend=backend)[..., 0], [7, 7])
    check(context_aggregation(q, k, v, scale=1.0, backend=backend)[..., 0], [7.6, 7.6])


def test_alpha_weighs_the_dynamic_term(backend):
    zero = tokens([0, 0], backend)
    check(context_aggregation(zero, zero, tokens([2, 4], backend), alpha=0.5, backend=backend), [1.5, 1.5])


def test_local_is_a_cross_correlation_with_zero_padding(backend):
    """Filter (1, 2, 3) along a row of 3: y_j = 1·v_{j−1} + 2·v_j + 3·v_{j+1}."""
    weight = torch.tensor([[[1.0, 2.0, 3.0]]], device=DEVICES[backend])
    out = context_aggregation(
        None, None, tokens([1, 10, 100], backend), local_weight=weight, grid_size=(1, 3), backend=backend
    )
    check(out, [32, 321, 210])


def test_tokens_are_row_major_on_the_grid(backend):
    """Filter that looks one row up: on a 2×2 grid tokens 2, 3 see 0, 1."""
    weight = torch.zeros(1, 3, 3, device=DEVICES[backend])
    weight[0, 0, 1] = 1
    zero, v = tokens([0] * 4, backend), tokens([1, 2, 3, 4], backend)
    out = context_aggregation(zero, zero, v, alpha=0.0, local_weight=weight, grid_size=(2, 2), backend=backend)
    check(out, [0, 0, 1, 2])


def test_beta_weighs_filter_and_bias(backend):
    weight, bias = torch.ones(1, 1, 1, device=DEVICES[backend]), torch.tensor([5.0], device=DEVICES[backend])
    zero, v = tokens([0, 0], backend), tokens([1, 3], backend)
    out = context_aggregation(
        zero, zero, v, alpha=1.0, beta=2.0, local_weight=weight, local_bias=bias, grid_size=(1, 2), backend=backend
    )
    check(out, [2 + 2 * 6, 2 + 2 * 8])


def test_affinity_rows_are_outputs(backend):
    affinity = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], device=DEVICES[backend])
    zero, v = tokens([0, 0], backend), tokens([1, 10], backend)
    check(context_aggregation(None, None, v, affinity=affinity, backend=backend), [21, 43])
    if backend in DENSE:
        mixed = context_aggregation(zero, zero, v, affinity=affinity, beta=-1.0, backend=backend)
        check(mixed, [5.5 - 21, 5.5 - 43])


def test_heads_are_independent(backend):
    v = torch.tensor([[1.0, 10.0], [3.0, 30.0]], device=DEVICES[backend]).view(1, 2, 2, 1)
    zero = torch.zeros_like(v)
    alpha = torch.tensor([1.0, 2.0], device=DEVICES[backend])
    check(context_aggregation(zero, zero, v, alpha=alpha, backend=backend), [2, 40, 2, 40])
