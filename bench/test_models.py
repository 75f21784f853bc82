# SPDX-License-Identifier: MIT
"""The networks, inference and training step, against the released network in plain PyTorch, and timm's."""

import pytest


@pytest.mark.section("model")
def test_model(problem, implementation, measure):
    measure(problem, implementation)


@pytest.mark.section("isotropic")
def test_isotropic(problem, implementation, measure):
    measure(problem, implementation)
