# SPDX-License-Identifier: MIT
"""The context aggregations of a network, and what each is given for an image."""

import functools

import torch
from torch import Tensor, nn

from ..modules import ContextAggregation
from ..modules.fused_block import FusedContainerBlock


def aggregation_layers(model: nn.Module) -> dict[str, ContextAggregation]:
    """All `ContextAggregation` layers of `model` by name, in its order.

    Raises:
        ValueError: there are none, or the network was fused, which leaves no such layer.
    """
    if any(isinstance(module, FusedContainerBlock) for module in model.modules()):
        raise ValueError("model: expected a network that is not fused, got one after fuse(): analyze it before")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, ContextAggregation)}
    if not layers:
        raise ValueError(f"model: expected a network with ContextAggregation layers, got {type(model).__name__}")
    return layers


@torch.no_grad()
def layer_inputs(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of `model` for `images` in evaluation mode, and the input of each of its aggregations.

    The network is left as it was: nothing stays hooked, and every module is in the mode it was in. Of a layer that is
    called several times, it is the last input.

    Raises:
        ValueError: as `aggregation_layers`.
    """
    layers = aggregation_layers(model)
    modes = {module: module.training for module in model.modules()}
    inputs: dict[str, Tensor] = {}
    # A layer with a hook is called, where a block would otherwise compute it together with others.
    hooks = [layer.register_forward_pre_hook(functools.partial(_keep, inputs, name)) for name, layer in layers.items()]
    try:
        return model.eval()(images), inputs
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode


def _keep(inputs: dict[str, Tensor], name: str, _: nn.Module, arguments: tuple[Tensor]) -> None:
    inputs[name] = arguments[0]
