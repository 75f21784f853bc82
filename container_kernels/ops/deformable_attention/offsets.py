# SPDX-License-Identifier: MIT
"""`deformable_attention_from_offsets`: the form in which networks predict where to look, exact in 16 bits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.tensors import accumulation_dtype, converted
from ..common.validation import check_device, check_shape, check_tensor
from .api import deformable_attention
from .reference import pair_on
from .validation import check_points, level_sizes


def deformable_attention_from_offsets(
    *,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    backend: str | None = None,
) -> Tensor:
    """`deformable_attention` at reference points plus offsets, weighted by the softmax of logits.

        location[l,p] = reference[l] + offset[l,p] / (W_l, H_l)                               reference (x, y)
        location[l,p] = reference[l, :2] + offset[l,p] / P · reference[l, 2:] / 2             reference (x, y, w, h)
        weight = softmax over l and p of logit[l,p]

    Offsets are in pixels of their level with 2 coordinates, in units of half a box per P with 4. Both may come in 16
    bits, as a linear layer under autocast gives them: locations and weights are made in float32, so that a small offset
    keeps its digits beside a reference (locations that were bfloat16 themselves move results by some 10 %). bfloat16
    keeps 1/512 of an offset: enough for pixels near by, a tenth of a pixel at the edge of a box 100 pixels wide.

    Args:
        value, spatial_shapes, backend: as for `deformable_attention`.
        reference_points: (B, Q, L, 2) or (B, Q, L, 4), relative to each level; any floating dtype, best float32.
        sampling_offsets: (B, Q, M, L, P, 2), (x, y); any floating dtype.
        attention_logits: (B, Q, M, L, P); any floating dtype.

    Returns:
        (B, Q, M, D), contiguous, dtype of `value` (of autocast, when that is on).

    Raises:
        ValueError, TypeError, RuntimeError: as `deformable_attention`.
    """
    sizes = level_sizes(spatial_shapes)
    check_tensor("value", value, 4, "(B, S, M, D)")
    check_tensor("sampling_offsets", sampling_offsets, 6, "(B, Q, M, L, P, 2)")
    check_tensor("reference_points", reference_points, 4, "(B, Q, L, 2 or 4)")
    check_tensor("attention_logits", attention_logits, 5, "(B, Q, M, L, P)")
    check_device("reference_points", reference_points, "value", value)
    check_device("sampling_offsets", sampling_offsets, "value", value)
    check_device("attention_logits", attention_logits, "value", value)
    batch, queries, heads, _, points = sampling_offsets.shape[:5]
    check_shape(
        "sampling_offsets", sampling_offsets, (batch, queries, heads, len(sizes), points, 2), "(B, Q, M, L, P, 2)"
    )
    check_shape("attention_logits", attention_logits, tuple(sampling_offsets.shape[:5]), "(B, Q, M, L, P)")
    if tuple(reference_points.shape) not in [(batch, queries, len(sizes), size) for size in (2, 4)]:
        raise ValueError(
            f"reference_points: expected (B, Q, L, 2 or 4) = ({batch}, {queries}, {len(sizes)}, 2 or 4), got "
            f"{tuple(reference_points.shape)}"
        )
    check_points("sampling_offsets", sampling_offsets)
    dtype = accumulation_dtype(value.dtype)
    locations = sampling_locations(sizes, converted(reference_points, dtype), converted(sampling_offsets, dtype), dtype)
    weights = converted(attention_logits, dtype).flatten(-2).softmax(-1).view_as(attention_logits)
    return deformable_attention(value, sizes, locations, weights, backend=backend)


def sampling_locations(
    sizes: list[tuple[int, int]], reference_points: Tensor, sampling_offsets: Tensor, dtype: torch.dtype
) -> Tensor:
    """The (B, Q, M, L, P, 2) locations of `deformable_attention_from_offsets`, in `dtype`."""
    reference = reference_points[:, :, None, :, None]
    if reference.shape[-1] == 2:
        columns_and_rows = torch.stack([pair_on(sampling_offsets, width, height, dtype) for height, width in sizes])
        return reference + sampling_offsets / columns_and_rows[:, None]
    points = sampling_offsets.shape[-2]
    return reference[..., :2] + sampling_offsets * (reference[..., 2:] * (0.5 / points))
