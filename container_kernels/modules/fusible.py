# SPDX-License-Identifier: MIT
"""Reasons why a block has to call its layers instead of computing what they do; None where there is no reason.

A block computes in place of calling only where the difference cannot be seen: a layer that was replaced or parametrized
is of another class, one that is listened to or sharded has hooks, one that was wrapped in place has a `forward` of its
own, one that was quantized has tensors of another class. Such layers are called, and the rest of the block is fused
around them. Hooks of all modules (`register_module_forward_hook`) do not count: programs that measure use them, and
would measure something else. They see the block as one.
"""

from timm.layers import DropPath
from torch import Tensor, nn

from ..ops.common.tensors import accumulation_dtype
from ..ops.dispatch.backend import why_class_matters


def reasons(**parts: str | None) -> str | None:
    """Those parts that have a reason, in words: "in_proj has hooks; out_proj …"; None where none has."""
    return "; ".join(f"{name} {reason}" for name, reason in parts.items() if reason) or None


def has_hooks(module: nn.Module) -> bool:
    """Whether calling `module` runs more, or something else, than the `forward` of its class."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def why_altered(module: nn.Module) -> str | None:
    """Why `module`, of a known class, may do something else than its class does, or be seen doing it."""
    if has_hooks(module):
        return "has a forward of its own" if "forward" in vars(module) else "has hooks"
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if why_class_matters(tensor):
                return f"has a {name} of class {type(tensor).__name__}"
    return None


def why_not_plain(module: nn.Module, *kinds: type[nn.Module]) -> str | None:
    """Why `module` is not exactly one of `kinds` as they are made, nothing hooked to it."""
    if type(module) not in kinds:
        return f"is of class {type(module).__name__}, not {' or '.join(kind.__name__ for kind in kinds)}"
    return why_altered(module)


def why_active(dropout: nn.Module) -> str | None:
    """Why `dropout` does not return its input."""
    if reason := why_not_plain(dropout, nn.Dropout):
        return reason
    return f"drops elements with p = {dropout.p}" if dropout.p and dropout.training else None


def why_not_sample_scale(drop_path: nn.Module) -> str | None:
    """Why `sample_scale` cannot replace `drop_path`."""
    return why_not_plain(drop_path, DropPath, nn.Identity)


def sample_scale(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """The factor of each sample (B,) that `drop_path` would multiply its branch with now; None for 1."""
    if isinstance(drop_path, nn.Identity) or drop_path.drop_prob == 0 or not drop_path.training:
        return None
    keep = 1 - drop_path.drop_prob
    scale = x.new_empty(x.shape[0], dtype=accumulation_dtype(x.dtype)).bernoulli_(keep)
    return scale.div_(keep) if keep > 0 and drop_path.scale_by_keep else scale
