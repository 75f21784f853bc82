# SPDX-License-Identifier: MIT
"""The names by which code calls Deformable DETR's CUDA extension, on `container_kernels.deformable_attention`.

| | in place of |
| --- | --- |
| `MSDeformAttnFunction`, `ms_deform_attn_core_pytorch` | `models/ops/functions` of Deformable DETR's descendants |
| `MultiScaleDeformableAttnFunction`, `multi_scale_deformable_attn_pytorch` | those of mmcv and of GroundingDINO |
| this module | the compiled `MultiScaleDeformableAttention`, GroundingDINO's `groundingdino._C` |

The last one without a change to the code that imports it:

    sys.modules["MultiScaleDeformableAttention"] = container_kernels.integrations.ms_deform_attn

`im2col_step` is ignored: any batch will do. Levels have to lie one after the other, as everywhere;
`value_level_start_index` is checked for that where the shapes have to be read from a tensor anyway.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..ops.deformable_attention import deformable_attention


def ms_deform_attn_core(
    value: Tensor,
    value_spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """`deformable_attention` with heads and channels in one dimension: (B, Q, M·D).

    Args:
        value: (B, S, M, D).
        value_spatial_shapes: (H, W) of every level, or a tensor (L, 2), which has to be read from the device.
        sampling_locations: (B, Q, M, L, P, 2).
        attention_weights: (B, Q, M, L, P).
    """
    sampling = (_beside(value, tensor) for tensor in (sampling_locations, attention_weights))
    return deformable_attention(value, value_spatial_shapes, *sampling).flatten(2)


def _beside(value: Tensor, sampling: Tensor) -> Tensor:
    """Locations or weights of 16 bits in a dtype that goes with `value`."""
    half = isinstance(sampling, Tensor) and sampling.dtype in (torch.bfloat16, torch.float16)
    return sampling.float() if half and sampling.dtype != value.dtype else sampling


class MSDeformAttnFunction:
    """Called as `MSDeformAttnFunction.apply(…)`: differentiable, under autocast too."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Sequence[tuple[int, int]] | Tensor,
        value_level_start_index: Tensor | None,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """(B, Q, M·D), as `ms_deform_attn_core` gives it."""
        sizes = _sizes(value_spatial_shapes, value_level_start_index)
        return ms_deform_attn_core(value, sizes, sampling_locations, attention_weights)


def ms_deform_attn_forward(
    value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights, im2col_step=64
) -> Tensor:
    """The extension's function: the result alone, without gradients."""
    with torch.no_grad():
        return MSDeformAttnFunction.apply(
            value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
        )


def ms_deform_attn_backward(
    value,
    value_spatial_shapes,
    value_level_start_index,
    sampling_locations,
    attention_weights,
    grad_output,
    im2col_step=64,
) -> list[Tensor]:
    """The extension's function: gradients of value, sampling locations and attention weights.

    Runs the forward pass once more, which `MSDeformAttnFunction` does not need.
    """
    sizes = _sizes(value_spatial_shapes, value_level_start_index)
    with torch.inference_mode(False), torch.enable_grad():
        tensors = (value, sampling_locations, attention_weights, grad_output)
        # Autograd takes no tensor of inference mode.
        *leaves, grad_output = (t.clone() if t.is_inference() else t.detach() for t in tensors)
        leaves = [tensor.requires_grad_() for tensor in leaves]
        out = ms_deform_attn_core(leaves[0], sizes, *leaves[1:])
        return list(torch.autograd.grad(out, leaves, grad_output))


def _sizes(spatial_shapes, level_start_index):
    """`spatial_shapes`, read together with `level_start_index` where both are tensors, for a check."""
    if not (isinstance(spatial_shapes, Tensor) and isinstance(level_start_index, Tensor)):
        return spatial_shapes
    if spatial_shapes.ndim != 2 or spatial_shapes.shape[1] != 2:
        return spatial_shapes  # an error below
    levels = spatial_shapes.shape[0]
    if tuple(level_start_index.shape) != (levels,):
        raise ValueError(f"value_level_start_index: expected (L,) = ({levels},), got {tuple(level_start_index.shape)}")
    numbers = torch.cat([spatial_shapes.flatten(), level_start_index.to(spatial_shapes)]).tolist()
    sizes = list(zip(numbers[0 : 2 * levels : 2], numbers[1 : 2 * levels : 2], strict=True))
    *expected, _ = accumulate((height * width for height, width in sizes), initial=0)
    if numbers[2 * levels :] != expected:
        raise ValueError(
            f"value_level_start_index: expected {expected}, levels one after the other, got {numbers[2 * levels :]}"
        )
    return sizes


ms_deform_attn_core_pytorch = multi_scale_deformable_attn_pytorch = ms_deform_attn_core
MultiScaleDeformableAttnFunction = MSDeformAttnFunction
