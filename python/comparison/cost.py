# SPDX-License-Identifier: MIT
"""Cost of a contender, counted: parameters, and multiply-adds per image."""

from __future__ import annotations

import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from comparison.contenders import Contender
from networks.build import build_model


@dataclasses.dataclass(frozen=True)
class Cost:
    """Counts of one network."""

    parameters: int
    multiply_adds: int


def count_cost(contender: Contender, num_classes: int, input_size: int) -> Cost:
    """The cost of a contender's forward pass for one image of `input_size`."""
    model = build_model(contender.model, num_classes, input_size, contender.model_kwargs).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, input_size, input_size))
    return Cost(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2)
