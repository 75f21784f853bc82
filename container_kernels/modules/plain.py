# SPDX-License-Identifier: MIT
"""When a block may compute what its layers do without calling them.

Only where nobody could tell: a layer that was replaced or parametrized is of another class, one that somebody listens
to or that is sharded has hooks, one that was wrapped in place has a `forward` of its own. Such layers are called, and
the rest of the block is fused around them. Hooks of all modules (`register_module_forward_hook`) do not count: programs
that measure use them, and would measure something else. They see the block as one.
"""

from timm.layers import DropPath
from torch import Tensor, nn

from ..ops.library import accumulation_dtype


def has_hooks(module: nn.Module) -> bool:
    """Whether calling `module` runs more, or something else, than the `forward` of its class."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` is exactly a `kind` and nothing is hooked to it."""
    return type(module) is kind and not has_hooks(module)


def is_inactive(dropout: nn.Module) -> bool:
    """Whether `dropout` returns its input."""
    return is_plain(dropout, nn.Dropout) and (dropout.p == 0 or not dropout.training)


def is_sample_scale(drop_path: nn.Module) -> bool:
    """Whether `sample_scale` can replace `drop_path`."""
    return is_plain(drop_path, nn.Identity) or is_plain(drop_path, DropPath)


def sample_scale(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """The factor of each sample (B,) that `drop_path` would multiply its branch with now; None for 1."""
    if isinstance(drop_path, nn.Identity) or drop_path.drop_prob == 0 or not drop_path.training:
        return None
    keep = 1 - drop_path.drop_prob
    scale = x.new_empty(x.shape[0], dtype=accumulation_dtype(x.dtype)).bernoulli_(keep)
    return scale.div_(keep) if keep > 0 and drop_path.scale_by_keep else scale
