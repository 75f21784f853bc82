# SPDX-License-Identifier: MIT
"""Maps an operator to the part of the network that it runs in, in the forward pass and in the backward.

Forward: the modules that are running. Backward: autograd numbers its nodes in the order of the forward calls, so the
number of the running node says which module made it. What a block does itself, outside of its modules, is told apart by
the operator: ours are named after what they compute.
"""

import bisect
import functools
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bench.profiling import operator_costs

PARTS = (
    "patch embedding", "position embedding", "norm", "projection", "aggregation", "MLP", "residual", "head", "loss",
    "optimizer",
)  # fmt: skip

_PATCHES = re.compile(r"(?:stages\.(?P<ours>\d+)\.downsample|patch_embed(?P<theirs>\d+))\b")
_BLOCK = re.compile(r"(?:stages\.(?P<ours>\d+)\.blocks|blocks(?P<theirs>\d+))\.\d+\.?(?P<layer>.*)")
# By the name of the layer inside a block, ours and the release's.
_LAYERS = (
    (re.compile(r"pos_embed\b"), "position embedding"),
    (re.compile(r"norm[12]\b"), "norm"),
    (re.compile(r"(aggregation\.(in|out)_proj|conv[12])\b"), "projection"),
    (re.compile(r"(aggregation|attn|conv)\b"), "aggregation"),
    (re.compile(r"mlp\b"), "MLP"),
    (re.compile(r"drop_path"), "residual"),
)
# By the op of an operator of ours, the folder's name.
_OPS = {
    "fused_mlp": "MLP",
    "projection": "projection",
    "context_aggregation": "aggregation",
    "local_aggregation": "aggregation",
    "fold_norm": "norm",
    "statistics": "norm",
}


class Place(NamedTuple):
    stage: str
    part: str
    direction: str


class Places:
    """Knows where a step of `network` is, while `watching`."""

    def __init__(self, network: nn.Module) -> None:
        self._paths = {id(module): path or "head" for path, module in network.named_modules()}
        self._parameters = {id(p): path.rpartition(".")[0] for path, p in network.named_parameters()}
        # The release's mixing block aggregates in a method, not in a module.
        self._methods = [m for m in network.modules() if callable(getattr(m, "aggregate", None))]
        self._stack: list[str] = []
        self._numbers, self._made_by = [0], [""]
        self._optimizing = self._backward = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it `of` answers for the step that runs."""
        with ExitStack() as stack:
            for hook in (
                register_module_forward_pre_hook(lambda module, *_: self._enter(self._paths.get(id(module)))),
                register_module_forward_hook(
                    lambda module, *_: self._leave(id(module) in self._paths), always_call=True
                ),
                register_optimizer_step_pre_hook(lambda *_: self._optimize(True)),
                register_optimizer_step_post_hook(lambda *_: self._optimize(False)),
            ):
                stack.callback(hook.remove)
            for module in self._methods:
                module.aggregate = self._inside(module.aggregate, f"{self._paths[id(module)]}.aggregation")
                stack.callback(delattr, module, "aggregate")
            yield

    def of(self, function: torch._ops.OpOverload, tensors: list[torch.Tensor]) -> Place:
        """The place of the step that now calls the operator on the tensors."""
        path, direction = self.running()
        if direction == "optimizer":
            return Place("step", "optimizer", direction)
        node = torch._C._current_autograd_node()
        return Place(*_stage_and_part(path, function, tensors, "" if node is None else node.name()), direction)

    def running(self) -> tuple[str, str]:
        """The path of the module that runs now, or whose backward does ("": none's), and forward, backward or
        optimizer."""
        if self._optimizing:
            return "", "optimizer"
        node = torch._C._current_autograd_node()
        self._backward |= node is not None
        # A module that runs inside a node computes its forward once more.
        path = self._stack[-1] if self._stack else "" if node is None else self._forward_of(node)
        return path, "backward" if self._backward else "forward"

    def _path(self, module: nn.Module) -> str | None:
        return self._paths.get(id(module))

    def _enter(self, path: str | None) -> None:
        if path is not None:
            self._stack.append(path)
            self._note()

    def _leave(self, path: str | None) -> None:
        if path is not None:
            self._stack.pop()
            self._note()

    def _inside(self, method, path: str):
        @functools.wraps(method)
        def call(*arguments):
            self._enter(path)
            try:
                return method(*arguments)
            finally:
                self._leave(path)

        return call

    def _note(self) -> None:
        """Nodes from here on belong to the module on top."""
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._made_by.append(self._stack[-1] if self._stack else "")

    def _forward_of(self, node) -> str:
        variable = getattr(node, "variable", None)
        if variable is not None:  # a parameter's gradient arrives
            return self._parameters.get(id(variable), "")
        return self._made_by[bisect.bisect_right(self._numbers, node._sequence_nr()) - 1]

    def _optimize(self, begins: bool) -> None:
        self._optimizing = begins


def _stage_and_part(path: str, function: torch._ops.OpOverload, tensors: list, node: str) -> tuple[str, str]:
    if match := _PATCHES.match(path):
        return _stage(match), "patch embedding"
    if match := _BLOCK.match(path):
        return _stage(match), _block_part(match["layer"], function, tensors, node)
    return ("head", "head") if path else ("step", "loss")


def _stage(match: re.Match) -> str:
    return f"stage {int(match['ours']) + 1 if match['ours'] else int(match['theirs'])}"


def _block_part(layer: str, function: torch._ops.OpOverload, tensors: list, node: str) -> str:
    operator = operator_costs.name(function)
    part = next((part for pattern, part in _LAYERS if pattern.match(layer)), None)
    if node and operator in ("add", "add_") and part in ("norm", "position embedding"):
        return "residual"  # of two branches' gradients, added where the first layer of one ends
    if part is not None and layer != "aggregation":
        return part
    if function.namespace == "container_kernels":
        op = next((op for op in _OPS if operator.startswith(f"{op}_")), None)
        return "position embedding" if op == "local_aggregation" and _window(tensors) == 3 else _OPS.get(op, "residual")
    if part is not None:
        return part
    # Vectors and matrices are weights, into which a norm is folded; operators "with_moments" also give the sums
    # that a norm needs, whose gradients theirs adds to the output's.
    return "norm" if all(t.ndim <= 2 for t in tensors) or "with_moments" in node else "residual"


def _window(tensors: list[torch.Tensor]) -> int:
    """The side of the filters among an operator's arguments and results."""
    return next(t.shape[-1] for t in tensors if t.ndim == 3)
