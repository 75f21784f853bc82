# SPDX-License-Identifier: MIT
"""The ops, forward and forward + backward.

`context_aggregation` against `scaled_dot_product_attention` + `conv2d`, `local_aggregation` against `conv2d` with one
group per channel, `fused_mlp` and `projection` against 1×1 convolutions, `deformable_attention` against `grid_sample`
per level.
"""

import pytest


@pytest.mark.section("context_aggregation")
def test_context_aggregation(problem, implementation, measure):
    measure(problem, implementation)


@pytest.mark.section("local_aggregation")
def test_local_aggregation(problem, implementation, measure):
    measure(problem, implementation)


@pytest.mark.section("fused_mlp")
def test_fused_mlp(problem, implementation, measure):
    measure(problem, implementation)


@pytest.mark.section("projection")
def test_projection(problem, implementation, measure):
    measure(problem, implementation)


@pytest.mark.section("deformable_attention")
def test_deformable_attention(problem, implementation, measure):
    measure(problem, implementation)
