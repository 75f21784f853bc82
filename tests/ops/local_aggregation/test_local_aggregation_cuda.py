"""CUDA local aggregation beyond the suite that every backend runs: how tensors are cut into blocks, and alignment.

Without a GPU the emulator stands for a device of 4 processors (csrc/cuda_emulator/runtime.cpp); the cuts named below
are those.
"""

import pytest
import torch
from backends import DEVICES, DTYPES, dtype_name

from container_kernels import local_aggregation, local_aggregation_with_statistics
from container_kernels.testing import (
    assert_within_budget,
    eager_local_aggregation,
    emulate_cuda,
    poisoned_outputs,
)

# B, H, W, C, k
SHAPES = {
    "images share a block, the last block has one": (9, 7, 7, 64, 5),
    "blocks of two images of two warps": (16, 3, 14, 20, 3),
    "several row tiles, all channel groups, the last one with 2 channels": (2, 21, 9, 130, 5),
    "several tiles of columns": (1, 5, 61, 66, 7),
    "row tiles of a tall image, one column": (1, 60, 1, 3, 7),
    "images one after the other": (67, 2, 2, 3, 5),
    "row tiles one after the other": (7, 45, 1, 8, 3),
    "row tiles one after the other, images that share a block, missing row tiles": (17, 21, 1, 5, 5),
    "images lower than the window's reach": (3, 2, 30, 8, 7),
    "a row": (2, 1, 70, 66, 3),
}


@pytest.fixture
def leaves(request):
    batch, height, width, channels, size = request.param
    x = torch.randn(batch, height, width, channels)
    weight = torch.randn(channels, size, size) / size
    return [t.to(DEVICES["cuda"]) for t in (x, weight, torch.randn(channels))]


def results(function, tensors, **options):
    """Output, statistics if any, and the gradients of the output's product with fixed numbers."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = function(*tensors, **options)
    first = out[0] if isinstance(out, tuple) else out
    grad_out = torch.randn(first.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(first)
    gradients = torch.autograd.grad(first, tensors, grad_out)
    return dict(zip(("out", "x", "weight", "bias"), (first.detach(), *gradients), strict=True)), out


def check(tensors):
    with poisoned_outputs():
        actual, (out, channel_sum, channel_square_sum) = results(
            local_aggregation_with_statistics, tensors, backend="cuda"
        )
    exact, _ = results(local_aggregation, [t.double() for t in tensors], backend="reference")
    eager, _ = results(eager_local_aggregation, tensors)
    for name in exact:
        assert_within_budget(name, actual[name], eager[name], exact[name])
    pixels = out.detach().flatten(0, 2)
    for name, sums, terms in (
        ("channel_sum", channel_sum, pixels.double()),
        ("channel_square_sum", channel_square_sum, pixels.double().square()),
    ):
        worst = terms[:, terms.norm(dim=0).argmax()]
        assert_within_budget(name, sums.detach(), terms.float().sum(0), terms.sum(0), summed=worst)


@pytest.mark.parametrize("leaves", SHAPES.values(), ids=SHAPES.keys(), indirect=True)
@pytest.mark.parametrize("backend", ["cuda"])
def test_cuts(backend, leaves):
    check(leaves)


@pytest.mark.parametrize("dtype", DTYPES["cuda"], ids=dtype_name)
@pytest.mark.parametrize(
    ("channels", "base", "offset"),
    [
        (64, 64, 0),  # whole 16 bytes
        (64, 72, 8),  # still, of every type
        (64, 65, 1),  # no two pixels alike
        (66, 68, 2),  # 4 bytes
        (63, 64, 1),
        (3, 3, 0),
        (1, 8, 5),
    ],
)
@pytest.mark.parametrize("backend", ["cuda"])
def test_alignments(backend, channels, base, offset, dtype):
    x = torch.randn(2, 6, 9, base, device=DEVICES["cuda"])[..., offset : offset + channels].to(dtype)
    padded = torch.full((2, 6, 9, base), torch.nan, dtype=dtype, device=x.device)
    sliced = padded[..., offset : offset + channels].copy_(x)
    weight = torch.randn(channels, 5, 5, device=x.device).to(dtype)
    bias = torch.randn(channels, device=x.device).to(dtype)
    check([sliced, weight, bias])


@pytest.mark.parametrize("backend", ["cuda"])
def test_one_column_has_any_stride(backend):
    """Such as 1, no multiple of 16 bytes, in (B, C, 1, 1) seen as (B, 1, 1, C); the columns beside it are addressed."""
    x = torch.randn(2, 5, 1, 64, device=DEVICES["cuda"])
    x = x.as_strided(x.shape, (5 * 64, 64, 1, 1))
    check([x, torch.randn(64, 3, 3, device=x.device), torch.randn(64, device=x.device)])


@pytest.mark.parametrize("channels", [64, 13])
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("backend", ["cuda"])
def test_a_filter_of_one_tap_moves_the_image(backend, size, channels):
    """Every tap by itself, exactly: x[y + dy, x + dx] and the gradient of that tap alone."""
    x = torch.randn(1, 8, 9, channels, device=DEVICES["cuda"])
    reach = size // 2
    padded = torch.nn.functional.pad(x, (0, 0, reach, reach, reach, reach))
    taps = torch.arange(channels, device=x.device) % size**2  # another one in every channel
    weight = torch.zeros(channels, size, size, device=x.device)
    weight.flatten(1)[torch.arange(channels), taps] = 1
    out = local_aggregation(x, weight, backend="cuda")
    for channel, tap in enumerate(taps.tolist()):
        dy, dx = divmod(tap, size)
        assert torch.equal(out[0, :, :, channel], padded[0, dy : dy + 8, dx : dx + 9, channel])


@pytest.mark.parametrize("backend", ["cuda"])
def test_infinities_stay_in_reach(backend):
    """What lies outside of an image, of a row tile or behind the last column is not multiplied into other pixels."""
    x = torch.zeros(2, 20, 9, 70, device=DEVICES["cuda"])
    x[0, 10, 4, 65] = torch.inf
    out = local_aggregation(x, torch.ones(70, 5, 5, device=x.device), backend="cuda")
    reached = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    reached[0, 8:13, 2:7, 65] = True
    assert torch.equal(out.isinf(), reached) and not out[~reached].count_nonzero()


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.skipif(DEVICES["cuda"] == "cuda", reason="the order of a GPU's threads is its own")
def test_the_order_of_threads_changes_no_bit(order):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((3, 9, 16, 70), (70, 5, 5), (70,)))
    with emulate_cuda():
        expected, expected_sums = results(local_aggregation_with_statistics, (x, weight, bias), backend="cuda")
    with emulate_cuda(order=order):
        actual, sums = results(local_aggregation_with_statistics, (x, weight, bias), backend="cuda")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert all(torch.equal(one, other) for one, other in zip(sums, expected_sums, strict=True))
