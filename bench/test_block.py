# SPDX-License-Identifier: MIT
"""`ContainerBlock`, mixing and static, forward and forward + backward, against the released network's blocks."""

import pytest


@pytest.mark.section("block")
def test_block(problem, implementation, measure):
    measure(problem, implementation)
