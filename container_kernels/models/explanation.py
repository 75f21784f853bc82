# SPDX-License-Identifier: MIT
"""Table of what runs in a network, per block: what is fused, which backend serves each op, and why not another."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from ..modules.block import ContainerBlock
from ..modules.fused_block import FusedContainerBlock
from ..modules.fusion import fusion_after_fuse
from ..ops.dispatch.backend import Choice, recorded_choices


class BlockExplanation(NamedTuple):
    """One block of a network.

    training, evaluation, after_fuse: None where all layers are part of fused passes, else which are called, and why.
        A block that is fused already has only the last.
    choices: which backend served each op, in evaluation, as the block stands.
    """

    name: str
    is_fused: bool
    training: str | None
    evaluation: str | None
    after_fuse: str | None
    choices: tuple[Choice, ...]


def explain_blocks(network: nn.Module, x: torch.Tensor) -> list[BlockExplanation]:
    """Each block of `network`, in order; runs it once on `x` (B, C, H, W), in evaluation and without gradients."""
    blocks = {n: b for n, b in network.named_modules() if isinstance(b, ContainerBlock | FusedContainerBlock)}
    choices = _choices(network, blocks, x)
    return [_explained(name, block, choices[name]) for name, block in blocks.items()]


def explanation(blocks: list[BlockExplanation]) -> str:
    """The table of `Network.explain`: rows of neighbours that are alike are one, reasons follow as footnotes."""
    notes: dict[str, int] = {}

    def noted(what: str, reason: str | None) -> str:
        return what if reason is None else f"{what} [{notes.setdefault(reason, len(notes) + 1)}]"

    def path(reason: str | None) -> str:
        return "fused" if reason is None else noted("in part", reason)

    rows = [("block", "in training", "in evaluation", "after fuse()", "ops on their backends")]
    for _, same in groupby(blocks, key=lambda block: block._replace(name="")):
        first, *others = same
        name = first.name if not others else f"{first.name} to {others[-1].name}"
        now = ("is fused", "is fused") if first.is_fused else (path(first.training), path(first.evaluation))
        ops = [noted(f"{choice.op} {choice.backend}", _why_not_first(choice)) for choice in first.choices]
        rows.append((name, *now, path(first.after_fuse), ", ".join(dict.fromkeys(ops))))
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]] + [0]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"[{number}] {reason}" for reason, number in notes.items())])


def _explained(name: str, block: nn.Module, choices: tuple[Choice, ...]) -> BlockExplanation:
    if isinstance(block, FusedContainerBlock):
        return BlockExplanation(name, True, None, None, block.why_not_fused(), choices)
    with _mode(block, training=True):
        training = block.why_not_fused()
    with _mode(block, training=False):
        evaluation = block.why_not_fused()
        if type(block) is ContainerBlock:
            after_fuse = fusion_after_fuse(block).why_not_fused()
        else:
            after_fuse = f"stays as it is: of class {type(block).__name__}, derived from ContainerBlock"
    return BlockExplanation(name, False, training, evaluation, after_fuse, choices)


def _choices(network: nn.Module, blocks: dict[str, nn.Module], x: torch.Tensor) -> dict[str, tuple[Choice, ...]]:
    """By block, the choices of one call of the network."""
    by_block, begun = {}, {}
    with recorded_choices() as made:
        hooks = []
        for name, block in blocks.items():
            hooks.append(block.register_forward_pre_hook(lambda *_, name=name: begun.update({name: len(made)})))
            hooks.append(
                block.register_forward_hook(lambda *_, name=name: by_block.update({name: tuple(made[begun[name] :])}))
            )
        try:
            with _mode(network, training=False), torch.no_grad():
                network(x)
        finally:
            for hook in hooks:
                hook.remove()
    return by_block


def _why_not_first(choice: Choice) -> str | None:
    """Why the backends that are tried first did not serve."""
    return "; ".join(f"{choice.op} on {name}: {reason}" for name, reason in choice.passed_over.items()) or None


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """`module.train(training)` for the time being."""
    before = {child: child.training for child in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for child, was_training in before.items():
            child.training = was_training
