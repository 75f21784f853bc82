# SPDX-License-Identifier: MIT
"""The definition of deformable attention in plain PyTorch: any dtype, differentiable any number of times."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.tensors import accumulation_dtype, converted
from ..dispatch.recording import is_recorded
from .inputs import DeformableArguments, Level


def deformable_attention_reference(inputs: DeformableArguments) -> Tensor:
    """out[b,q,m] = Σ_{l,p} weight[b,q,m,l,p] · bilinear(value_l[b,m]; location[b,q,m,l,p])."""
    value, _, locations, weights = inputs
    dtype = accumulation_dtype(value.dtype)
    values, locations, weights = (converted(tensor, dtype) for tensor in (value, locations, weights))
    # A recorded program is run by others, which know one operator for this.
    sampled = _by_grid_sample if is_recorded() else _by_gathering
    out = torch.zeros((), dtype=dtype, device=value.device)
    for index, level in enumerate(inputs.levels()):
        maps = values.narrow(1, level.start, level.height * level.width).permute(0, 2, 3, 1)  # (B, M, D, H·W)
        points = locations[:, :, :, index].transpose(1, 2)  # (B, M, Q, P, 2)
        of_points = weights[:, :, :, index].transpose(1, 2)[:, :, None]  # (B, M, 1, Q, P)
        out = out + (of_points * sampled(maps, level, points)).sum(-1)
    return converted(out.permute(0, 3, 1, 2), value.dtype).contiguous()


def pair_on(like: Tensor, x: int, y: int, dtype: torch.dtype | None = None) -> Tensor:
    """(x, y) on the device of `like`, filled there: a copy from the host would wait, and fix sizes in a program."""
    return torch.stack([like.new_full((), number, dtype=dtype or like.dtype) for number in (x, y)])


def _by_gathering(maps: Tensor, level: Level, points: Tensor) -> Tensor:
    """The (B, M, D, Q, P) values of `maps` (B, M, D, H·W) between pixels, zero outside."""
    sizes = pair_on(points, level.width, level.height)
    pixel = points * sizes - 0.5
    # Before anything is an integer, which a distant point would overflow.
    inside = ((pixel > -1) & (pixel < sizes)).all(-1, keepdim=True)
    pixel = torch.where(inside, pixel, 0)
    first = pixel.detach().floor()
    fraction = pixel - first
    result = 0
    for down in (0, 1):
        for right in (0, 1):
            corner = first + pair_on(first, right, down)
            exists = inside & ((corner >= 0) & (corner < sizes)).all(-1, keepdim=True)
            column, row = torch.where(exists, corner, 0).long().unbind(-1)
            index = (row * level.width + column).flatten(2)[:, :, None].expand(-1, -1, maps.shape[2], -1)
            values = maps.gather(3, index).unflatten(3, points.shape[2:4])
            values = torch.where(exists.squeeze(-1)[:, :, None], values, 0)
            across, along = (fraction if side else 1 - fraction for side in (right, down))
            result = result + values * (across[..., 0] * along[..., 1])[:, :, None]
    return result


def _by_grid_sample(maps: Tensor, level: Level, points: Tensor) -> Tensor:
    """`_by_gathering` in one operator of PyTorch."""
    batch, heads = maps.shape[:2]
    images = maps.flatten(0, 1).unflatten(2, (level.height, level.width))
    # 2 is outside of any map; of infinity it makes NaN.
    points = torch.where(points.abs() < 2, points, 2.0)
    grid = 2 * points.flatten(0, 1) - 1
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.unflatten(0, (batch, heads))
