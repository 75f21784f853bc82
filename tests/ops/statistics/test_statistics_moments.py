"""Sum and M2 by channel where the mean is large beside the deviation: as exact as PyTorch's own batch statistics."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from backends import ALL, DEVICES, DTYPES, FUSED, PROJECTION, dtype_name

from container_kernels import (
    _extension,
    local_aggregation_with_moments,
    local_aggregation_with_statistics,
    projection_with_moments,
    projection_with_statistics,
)
from container_kernels.testing import poisoned_outputs

OPS = {"local": ALL, "wide": ALL, "projection": PROJECTION}
OPS_AND_BACKENDS = [(op, backend) for op, backends in OPS.items() for backend in backends]
# |mean| / deviation; 16 bits hold no deviation beside a larger one.
RATIOS = [1, 100, 1e3, 1e4]
HIGHEST_RATIO = {torch.bfloat16: 1, torch.float16: 100, torch.float32: 1e4, torch.float64: 1e4}
# Numbers that a kernel adds one after the other in the accumulation dtype, at most: rows of a projection's tile.
TILE = 128
# Several tasks, strips and tiles, the last ones not full; one pixel each; one channel.
LARGE, *_ = SHAPES = [(2, 19, 9, 40), (2, 1, 1, 70), (1, 2, 40, 1)]
LEVELS = _extension.cpu.supported_isas() if _extension.cpu else []


def make(op, shape, ratio, dtype, device):
    """(x with channel means of ±ratio and a deviation of 1, the op on x as a function)."""
    random = torch.Generator().manual_seed(sum(shape))
    channels = shape[-1]
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    x += ratio * (1 - 2 * (torch.arange(channels) % 2))
    x = x.to(dtype).to(device)
    if op == "projection":
        weight = torch.randn(channels, channels, generator=random) / (ratio * channels**0.5)
        return x, partial(projection_with_moments, weight=weight.to(device, dtype), residual=x)
    # Windows of the center and its neighbours below and above, so that borders differ from the inside, but little.
    height = 11 if op == "wide" else 3
    weight = torch.zeros(channels, height, 3)
    weight[:, height // 2 - 1 : height // 2 + 2, 1] = torch.randn(channels, 3, generator=random) / (3 * ratio)
    return x, partial(local_aggregation_with_moments, weight=weight.to(device), residual=True)


def mean_and_variance(out, channel_sum, channel_m2):
    count = out[..., 0].numel()
    return channel_sum.double() / count, channel_m2.double() / count


def assert_as_exact_as_torch(out, mean, variance):
    rows = out.detach().flatten(0, -2).to(torch.float64 if out.dtype == torch.float64 else torch.float32)
    if len(rows) == 1:
        assert not variance.count_nonzero()
        return
    # In float64 and about a value, from which differences are exact: so the judge is exacter than float64 itself.
    base = rows[0].double()
    exact_variance, distance = torch.var_mean(rows.double() - base, 0, correction=0)
    torch_variance, torch_mean = (t.double() for t in torch.var_mean(rows, 0, correction=0))
    varies = exact_variance > 0  # 16 bits may round all values to one
    assert not variance[~varies].count_nonzero()
    deviation, eps = exact_variance[varies].sqrt(), torch.finfo(rows.dtype).eps

    def errors(mean, variance):
        """The largest ones of the mean in deviations, and of the variance as a part of it."""
        of_mean = ((mean - base) - distance)[varies] / deviation
        return of_mean.abs().max(), (variance[varies] / deviation.square() - 1).abs().max()

    # Beside twice PyTorch's own, which may be 0 by luck, what a chain of TILE additions rounds: each by eps/2 of the
    # sum so far at most. Sums of squares grow evenly: in random directions their errors have a standard deviation of
    # TILE^½ eps/6 (1/√3 for the even growth, 1/√3 for the even spread of roundings), and six of these are allowed. Sums
    # of deviations grow as √k, so that even in one direction they make an error of TILE^½ eps/3 in the mean. Its sum
    # and quotient are rounded, too.
    chain = TILE**0.5 * eps
    rounding = chain + eps * ((base + distance)[varies].abs() / deviation).max(), chain
    ours, torchs = errors(mean, variance), errors(torch_mean, torch_variance)
    for name, error, allowed, extra in zip(("mean", "variance"), ours, torchs, rounding, strict=True):
        assert error <= 2 * allowed + extra, f"{name}: error {error:.2e}, PyTorch's {allowed:.2e} + {extra:.2e}"


def any_mean():
    """(op, backend, dtype, shape, ratio): what a dtype holds; kernels of the widest windows are slow to interpret."""
    for op, backend in OPS_AND_BACKENDS:
        for dtype in DTYPES[backend]:
            highest = HIGHEST_RATIO[dtype]
            yield from ((op, backend, dtype, shape, highest) for shape in SHAPES)
            if op != "wide" and dtype != torch.float64:
                yield from ((op, backend, dtype, LARGE, ratio) for ratio in RATIOS if ratio < highest)


@pytest.mark.parametrize(("op", "backend", "dtype", "shape", "ratio"), list(any_mean()), ids=dtype_name)
@torch.no_grad()
def test_any_mean(op, backend, dtype, shape, ratio):
    x, function = make(op, shape, ratio, dtype, DEVICES[backend])
    with poisoned_outputs():
        results = function(x, backend=backend)
    assert_as_exact_as_torch(results[0], *mean_and_variance(*results))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=dtype_name)
@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_every_instruction_set(op, dtype, level):
    x, function = make(op, (2, 19, 9, 37), HIGHEST_RATIO[dtype], dtype, "cpu")
    before = _extension.cpu.isa()
    _extension.cpu.set_isa(level)
    try:
        results = function(x, backend="cpu")
    finally:
        _extension.cpu.set_isa(before)
    assert_as_exact_as_torch(results[0], *mean_and_variance(*results))


@pytest.mark.parametrize(("op", "backend"), [pair for pair in OPS_AND_BACKENDS if pair[1] in FUSED])
@torch.no_grad()
def test_differences_in_16_bits_are_exact(op, backend):
    """About a pivot of 16 bits they are multiples of 1/16 here, and so few that float32 holds their sums, too."""
    x, function = make(op, LARGE, 100, torch.float16, DEVICES[backend])
    out, _, m2 = function(x, backend=backend)
    rows = out.flatten(0, 2).double()
    exact = (rows - rows.mean(0)).square().sum(0)
    torch.testing.assert_close(m2.double(), exact, rtol=torch.finfo(torch.float32).eps / 2, atol=0)


@pytest.mark.parametrize(("op", "backend"), OPS_AND_BACKENDS)
@torch.no_grad()
def test_one_pixel_far_from_the_others(op, backend):
    """Whichever it is: sums about a pivot that it alone had made would lose the variance of its channel."""
    x, function = make(op, (2, 19, 9, 8), 1, torch.float32, DEVICES[backend])
    for pixel in ((0, 0, 0), (0, 9, 4), (1, 18, 8)):
        far = x.clone()
        far[pixel] = 1e4
        results = function(far, backend=backend)
        assert_as_exact_as_torch(results[0], *mean_and_variance(*results))


@pytest.mark.parametrize(("op", "backend"), OPS_AND_BACKENDS)
@torch.no_grad()
def test_constant_channels_have_no_variance(op, backend):
    x, function = make(op, (2, 9, 5, 20), 1, torch.float32, DEVICES[backend])
    x.fill_(1000.1)
    function.keywords["weight"].zero_()
    _, _, m2 = function(x, backend=backend)
    assert torch.equal(m2, torch.zeros_like(m2))


@pytest.mark.parametrize("backend", FUSED)
def test_repeats_are_bit_identical(backend):
    for op in (name for name, backends in OPS.items() if backend in backends):
        x, function = make(op, LARGE, 1e3, torch.float32, DEVICES[backend])
        first = function(x, backend=backend)
        assert all(map(torch.equal, function(x, backend=backend), first))


@pytest.mark.parametrize("op", OPS)
def test_same_bits_for_any_number_of_threads(op):
    x, function = make(op, LARGE, 1e3, torch.float32, "cpu")
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(function(x, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("op", ["local", "projection"])
def test_gradients_to_second_order(op, backend):
    x, function = make(op, (1, 2, 3, 2), 1, torch.float64, "cpu")
    weight = function.keywords.pop("weight").double().requires_grad_()

    def moments_alone(x, weight):
        return function(x, weight=weight, backend=backend)

    assert torch.autograd.gradcheck(moments_alone, (x.requires_grad_(), weight))
    assert torch.autograd.gradgradcheck(moments_alone, (x, weight))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("op", "backend"), OPS_AND_BACKENDS)
def test_gradient_of_a_norm(op, backend, ratio):
    """Through mean and variance to x, beside PyTorch's BatchNorm of the same output."""
    x, function = make(op, (3, 9, 8, 20), ratio, torch.float32, DEVICES[backend])
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)

    def gradient(normalize, dtype):
        leaf = x.detach().to(dtype).requires_grad_()
        keywords = {
            key: value.to(dtype) if torch.is_tensor(value) else value for key, value in function.keywords.items()
        }
        if op == "projection":
            keywords["residual"] = leaf
        return torch.autograd.grad(normalize(partial(function.func, leaf, **keywords)), leaf, grad.to(dtype))[0]

    def ours(function):
        out, channel_sum, channel_m2 = function(backend=backend)
        count = out[..., 0].numel()
        return (out - channel_sum / count) * (channel_m2 / count + 1e-5).rsqrt()

    def torchs(function):
        out, *_ = function(backend="reference")
        return F.batch_norm(out.permute(0, 3, 1, 2), None, None, training=True).permute(0, 2, 3, 1)

    exact = gradient(torchs, torch.float64)
    error, allowed = ((gradient(f, torch.float32) - exact).abs().max() for f in (ours, torchs))
    assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * exact.abs().max(), (error, allowed)


@pytest.mark.parametrize(
    ("with_moments", "with_statistics"),
    [
        (local_aggregation_with_moments, local_aggregation_with_statistics),
        (projection_with_moments, projection_with_statistics),
    ],
    ids=["local", "projection"],
)
def test_statistics_are_sums_of_the_same(with_moments, with_statistics):
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    weight = torch.randn(4, 3, 3) if with_moments is local_aggregation_with_moments else torch.randn(4, 4)
    y, channel_sum, channel_m2 = with_moments(x, weight)
    same, same_sum, square_sum = with_statistics(x, weight)
    rows = y.flatten(0, 2)
    assert torch.equal(y, same) and torch.equal(channel_sum, same_sum)
    torch.testing.assert_close(channel_m2, (rows - rows.mean(0)).square().sum(0))
    torch.testing.assert_close(square_sum, rows.square().sum(0))


@pytest.mark.parametrize("backend", ALL)
def test_empty(backend):
    for op in (name for name, backends in OPS.items() if backend in backends):
        for shape in ((0, 3, 3, 4), (2, 0, 3, 4)):
            x, function = make(op, shape, 1, torch.float32, DEVICES[backend])
            with poisoned_outputs():
                out, *statistics = function(x, backend=backend)
            assert out.shape == shape and not any(t.count_nonzero() for t in statistics)


@pytest.mark.parametrize("op", OPS)
def test_compiles_without_a_graph_break(op):
    x, function = make(op, (2, 5, 6, 8), 100, torch.float32, "cpu")
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(x), function(x))
