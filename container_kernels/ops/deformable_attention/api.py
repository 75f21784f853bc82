# SPDX-License-Identifier: MIT
"""`deformable_attention`: multi-scale deformable attention, as Deformable DETR and its many descendants have it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch import autocast
from ..dispatch.backend import choose
from .autograd import deformable_attention_forward
from .backends import COMPILED, why_not
from .inputs import DeformableArguments
from .reference import deformable_attention_reference
from .validation import check_sampling_dtypes, level_sizes, validate


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Read a few points of feature maps of several levels for every query and head, and add them up by weight.

        out[b,q,m] = Σ_{l,p} weights[b,q,m,l,p] · bilinear(value of level l, image b, head m; at locations[b,q,m,l,p])

    A location (x, y) is relative to its level: 0 and 1 are the outer edges of the map, so that it lies at column
    x·W_l − ½ and row y·H_l − ½ (align_corners=False). Outside the map all values are zero; a location may be any
    number, also infinite; one that is NaN counts as outside. (Zhu et al., "Deformable DETR", 2021, equation 3, without
    the two projections.) Sums run in float32 (float64 for float64), in a fixed order: the same inputs give the same
    bits, also in the gradients of all three tensors (on a GPU by the kernels; those of "reference" are PyTorch's).

    Args:
        value: (B, S, M, D), any strides with a contiguous last dimension; float32, bfloat16, float16 or float64. S is
            Σ H_l·W_l: the pixels of all levels one after the other, rows first.
        spatial_shapes: (H_l, W_l) of every level. An integer tensor (L, 2) will do, but has to be read from the device,
            which waits for it and, in torch.compile, breaks the graph.
        sampling_locations: (B, Q, M, L, P, 2), dtype of `value` or float32. bfloat16 holds them too coarsely for all
            but small maps: its rounding alone moves results by some 10 %.
        attention_weights: (B, Q, M, L, P), dtype of `value` or float32; any finite numbers, usually a softmax over L·P.
            One that is not finite spoils its query's result, or, where its point is outside, may do so.
        backend: "cuda", "triton", "cpu", "reference", or None for the fastest that serves.

    Returns:
        (B, Q, M, D), contiguous, dtype of `value` (of autocast, when that is on; locations and weights keep theirs).

    Raises:
        ValueError: a shape or device does not fit, or the levels have other than S pixels.
        TypeError: an argument is not a floating-point tensor, or not of the dtypes above.
        RuntimeError: the backend asked for cannot serve this call; the message says why.
    """
    sizes = level_sizes(spatial_shapes)
    validate(value, sizes, sampling_locations, attention_weights)
    if autocast.is_active(value):
        device_type = value.device.type
        with torch.autocast(device_type, enabled=False):
            # Of locations a narrower dtype would leave too little, and weights may stay as they are.
            value, *sampling = autocast.cast(value, device_type), sampling_locations, attention_weights
            return deformable_attention(value, sizes, *map(_widened, sampling), backend=backend)
    check_sampling_dtypes(value, sampling_locations, attention_weights)
    tensors = (value, sampling_locations, attention_weights)
    chosen = choose("deformable_attention", backend, why_not, tensors, len(sizes), compiled=COMPILED)
    flat_sizes = [size for level in sizes for size in level]
    inputs = DeformableArguments(value, flat_sizes, sampling_locations, attention_weights)
    if chosen == "reference":
        return deformable_attention_reference(inputs)
    return deformable_attention_forward(chosen, inputs)


def _widened(tensor: Tensor) -> Tensor:
    """Locations or weights in a dtype that goes with any dtype of `value`."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)
