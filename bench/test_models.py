# SPDX-License-Identifier: MIT
"""The networks, inference and training step, against the released network in plain PyTorch."""

import pytest


@pytest.mark.section("model")
def test_model(problem, implementation, measure):
    measure(problem, implementation)
