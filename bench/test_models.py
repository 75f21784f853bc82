# SPDX-License-Identifier: MIT
"""The networks, inference and training step, against the released network in plain PyTorch, and timm's."""

import pytest


@pytest.mark.section("model")
def test_model(problem, implementation, measure):
    measure(problem, implementation)


@pytest.mark.section("column")
def test_column(problem, implementation, measure):
    measure(problem, implementation)
