# SPDX-License-Identifier: MIT
"""One call of deformable attention: what its operators take and its backends are given."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from ..common.tensors import accumulation_dtype, rows_contiguous

# What the gradient of value does not depend on.
SAMPLING_ONLY = ("value",)


class Level(NamedTuple):
    """A feature map of `height` rows, whose pixels begin at `start` of S."""

    start: int
    height: int
    width: int


class DeformableArguments(NamedTuple):
    """Σ_{l,p} weight · bilinear(value at location).

    The fields, in this order, are the parameters of the operators (`schema`); the operator of the gradient of value
    lacks those of `SAMPLING_ONLY`, which are None then.

    value: (B, S, M, D); to kernels, any strides with a contiguous last dimension.
    spatial_shapes: height and width of the levels in turn, 2·L numbers.
    sampling_locations: (B, Q, M, L, P, 2), (x, y); attention_weights: (B, Q, M, L, P): each in the dtype of value or
        in the accumulation dtype; to kernels contiguous.
    """

    value: Tensor
    spatial_shapes: list[int]
    sampling_locations: Tensor
    attention_weights: Tensor

    @property
    def pixels(self) -> int:
        return sum(level.height * level.width for level in self.levels())

    def levels(self) -> Iterator[Level]:
        """The levels, in the order of their pixels."""
        start = 0
        for height, width in zip(self.spatial_shapes[::2], self.spatial_shapes[1::2], strict=True):
            yield Level(start, height, width)
            start += height * width

    def readable(self) -> "DeformableArguments":
        """With the tensors as kernels take them."""
        value = None if self.value is None else rows_contiguous(self.value)
        return self._replace(
            value=value,
            sampling_locations=self.sampling_locations.contiguous(),
            attention_weights=self.attention_weights.contiguous(),
        )

    def accumulating(self, dtype) -> "DeformableArguments":
        """With locations and weights in the accumulation dtype of `dtype`, for kernels that take them in no other."""
        dtype = accumulation_dtype(dtype)
        return self._replace(
            sampling_locations=self.sampling_locations.to(dtype), attention_weights=self.attention_weights.to(dtype)
        )
