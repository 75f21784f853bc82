"""Folding a norm into a layer, on every backend: numbers, gradients, running statistics, what torch asks of an op."""

import copy

import pytest
import torch
import torch.nn.functional as F
from backends import DEVICES, dtype_name
from torch import nn

from container_kernels import use_backend
from container_kernels.ops.fold_norm import Moments, fold_norm, track_moments
from container_kernels.ops.fold_norm.backends import COMPILED
from container_kernels.testing import assert_within_budget, poisoned_outputs

BACKENDS = ("reference", *COMPILED)
# (C_out, C): one of everything, whole tiles, ragged ones, more channels than a tile.
SHAPES = [(1, 1), (24, 8), (37, 20), (64, 128), (130, 200)]
NAMES = ("weight", "bias", "first", "second", "gamma", "beta")


def make(shape, device, *, count=50, dtype=torch.float32):
    """Leaves by name: moments of inputs with mean and deviation of order 1, as sum and M2 unless `count` is 0."""
    rows, channels = shape
    random = torch.Generator().manual_seed(rows + channels)

    def draw(*size, low=-1.0):
        return torch.rand(size, generator=random, dtype=torch.float64) * (1 - low) + low

    mean, variance = draw(channels), draw(channels, low=0.2)
    leaves = {
        "weight": draw(rows, channels).to(dtype),
        "bias": draw(rows),
        "first": mean * max(count, 1),
        "second": variance * max(count, 1),
        "gamma": draw(channels, low=0.5),
        "beta": draw(channels),
    }
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {name: t.to(dtype if name == "weight" else wide).to(device).requires_grad_() for name, t in leaves.items()}


def run(leaves, count, dtype, backend):
    weight, bias, first, second, gamma, beta = (leaves[name] for name in NAMES)
    return with_gradients(
        fold_norm(weight, bias, Moments(first, second, count), gamma, beta, 1e-5, dtype, backend=backend), leaves, dtype
    )


def exactly(leaves, count, folded):
    """The definition in float64, but for the rounding of W', which b' makes up for: that is `folded`'s."""
    leaves = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
    mean, variance = Moments(leaves["first"], leaves["second"], count).mean_and_variance()
    unrounded = leaves["weight"] * leaves["gamma"] * (variance + 1e-5).rsqrt()
    rounded = unrounded + (folded - unrounded).detach()
    shift = leaves["bias"] + leaves["weight"] @ leaves["beta"] - rounded @ mean
    (_, shift), grads = with_gradients((rounded, shift), leaves, folded.dtype)
    return (unrounded, shift), grads


def with_gradients(results, leaves, dtype):
    random = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=random).to(dtype).to(t) for t in results]
    return results, dict(zip(NAMES, torch.autograd.grad(results, [leaves[name] for name in NAMES], grads), strict=True))


@pytest.mark.parametrize("count", [50, 0], ids=["sums", "mean and variance"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_float64(backend, shape, dtype, count):
    leaves = make(shape, DEVICES[backend], count=count)
    eager, eager_grads = run(leaves, count, dtype, "reference")
    with poisoned_outputs():
        (folded, shift), grads = run(leaves, count, dtype, backend)
    exact, exact_grads = exactly(leaves, count, folded)
    assert folded.dtype == dtype and shift.dtype == torch.float32
    assert_within_budget("folded", folded, eager[0], exact[0])
    terms = leaves["weight"].detach()
    assert_within_budget("shift", shift, eager[1], exact[1], summed=terms)
    for name in NAMES:
        assert_within_budget(f"gradient of {name}", grads[name], eager_grads[name], exact_grads[name], summed=terms)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_of_the_normalized_input(backend):
    """What the op is for: the layer on batch-normalized rows, from the rows and their moments."""
    leaves = make((24, 20), DEVICES[backend])
    rows = torch.randn(50, 20, device=DEVICES[backend]) * 2 + 1
    moments = Moments(rows.sum(0), rows.var(0, correction=0) * len(rows), len(rows))
    folded, shift = fold_norm(
        leaves["weight"], leaves["bias"], moments, leaves["gamma"], leaves["beta"], 1e-3, torch.float32, backend=backend
    )
    normalized = F.batch_norm(rows, None, None, leaves["gamma"], leaves["beta"], training=True, eps=1e-3)
    torch.testing.assert_close(
        F.linear(rows, folded, shift), F.linear(normalized, leaves["weight"], leaves["bias"]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_bias_scale_and_shift(backend):
    leaves = make((24, 20), DEVICES[backend])
    moments = Moments(leaves["first"], leaves["second"], 50)
    ones, zeros = torch.ones(20, device=DEVICES[backend]), torch.zeros(20, device=DEVICES[backend])
    expected = fold_norm(leaves["weight"], torch.zeros_like(leaves["bias"]), moments, ones, zeros, 1e-5, torch.float32)
    actual = fold_norm(leaves["weight"], None, moments, None, None, 1e-5, torch.float32, backend=backend)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_channels(backend):
    """A variance of 0: eps alone is left."""
    leaves = make((4, 3), DEVICES[backend])
    with torch.no_grad():
        leaves["second"][1] = 0
    results, grads = run(leaves, 50, torch.float32, backend)
    assert all(t.isfinite().all() for t in (*results, *grads.values()))
    torch.testing.assert_close(results[0][:, 1], leaves["weight"][:, 1] * leaves["gamma"][1] * 1e-5**-0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(backend):
    """In the channel that has it, in what is folded and in the running statistics; without eps, too."""
    leaves = {name: t.detach() for name, t in make((5, 20), DEVICES[backend]).items()}
    leaves["second"][7] = torch.nan
    moments = Moments(leaves["first"], leaves["second"], 50)
    parts = (leaves["weight"], leaves["bias"], moments, leaves["gamma"], leaves["beta"])
    folded, _ = fold_norm(*parts, 0.0, torch.float32, backend=backend)
    mean, variance = torch.ones(2, 20, device=DEVICES[backend]).unbind()
    track_moments(mean, variance, None, moments, 0.1, backend=backend)
    expected = torch.arange(20, device=DEVICES[backend]) == 7
    assert torch.equal(folded.isnan(), expected.expand(5, 20)) and torch.equal(variance.isnan(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tracks_as_batch_norm_does(backend, momentum, dtype):
    norm = nn.BatchNorm2d(300, momentum=momentum).to(DEVICES[backend])
    ours = copy.deepcopy(norm).to(dtype)
    for seed in range(3):
        x = torch.randn(5, 300, 2, 3, generator=torch.Generator().manual_seed(seed)).to(DEVICES[backend]) + seed
        norm(x)
        moments = Moments(x.sum((0, 2, 3)), x.var((0, 2, 3), correction=0) * 30, 30)
        track_moments(ours.running_mean, ours.running_var, ours.num_batches_tracked, moments, momentum, backend=backend)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours.running_mean.float(), norm.running_mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.running_var.float(), norm.running_var, rtol=tolerance, atol=tolerance)
    assert ours.num_batches_tracked == norm.num_batches_tracked == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_average_of_batches_that_nobody_counts_stays(backend):
    """As in `nn.BatchNorm2d` without `num_batches_tracked`."""
    mean, variance = torch.ones(2, 3, device=DEVICES[backend]).unbind()
    sums = torch.full((3,), 90.0, device=DEVICES[backend])
    track_moments(mean, variance, None, Moments(sums, sums * 6, 30), None, backend=backend)
    assert (mean == 1).all() and (variance == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_count_of_a_group_of_processes(backend):
    """A tensor: whatever was asked for, plain PyTorch serves, without waiting for its value."""
    leaves = make((24, 20), DEVICES[backend])
    count = torch.tensor([50.0], device=DEVICES[backend])
    results, _ = run(leaves, count, torch.float32, None)
    torch.testing.assert_close(results, run(leaves, 50, torch.float32, backend)[0])


def test_gradients_numerically():
    for count in (50, 0):
        leaves = make((3, 4), "cpu", count=count, dtype=torch.float64)

        def function(weight, bias, first, second, gamma, beta, count=count):
            return fold_norm(weight, bias, Moments(first, second, count), gamma, beta, 1e-5, torch.float64)

        assert torch.autograd.gradcheck(function, tuple(leaves.values()))
        assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("backend", COMPILED)
def test_opcheck(backend):
    leaves = make((24, 20), DEVICES[backend])
    weight, bias, first, second, gamma, beta = (leaves[name] for name in NAMES)
    ops = torch.ops.container_kernels
    for dtype in (torch.float32, torch.bfloat16):
        arguments = (weight, bias, first, second, 50, gamma, beta, 1e-5, dtype)
        torch.library.opcheck(getattr(ops, f"fold_norm_forward_{backend}").default, arguments)
    vectors = [t.detach() for t in (first, second, gamma, beta)]
    arguments = (weight.detach(), bias.detach(), weight.detach(), *vectors[:2], 50, *vectors[2:], 1e-5)
    torch.library.opcheck(getattr(ops, f"fold_norm_backward_{backend}").default, arguments)
    running = [torch.zeros_like(vectors[0]), torch.ones_like(vectors[0]), torch.tensor(0, device=weight.device)]
    torch.library.opcheck(getattr(ops, f"fold_norm_track_{backend}").default, (*running, *vectors[:2], 50, 0.1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend):
    leaves = make((24, 20), DEVICES[backend])

    def function(running_mean, running_var, batches, **leaves):
        moments = Moments(leaves["first"], leaves["second"], 50)
        track_moments(running_mean, running_var, batches, moments, 0.1)
        parts = (leaves["weight"], leaves["bias"], moments, leaves["gamma"], leaves["beta"])
        return fold_norm(*parts, 1e-5, torch.float32)

    def buffers():
        zeros = torch.zeros(20, device=DEVICES[backend])
        return zeros, torch.ones_like(zeros), torch.tensor(0, device=DEVICES[backend])

    expected_buffers, actual_buffers = buffers(), buffers()
    with use_backend(backend):
        expected = function(*expected_buffers, **leaves)
        actual = torch.compile(function, fullgraph=True)(*actual_buffers, **leaves)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual_buffers, expected_buffers)
    names = list(leaves)
    torch.testing.assert_close(
        torch.autograd.grad(actual[0].sum() + actual[1].sin().sum(), [leaves[n] for n in names]),
        torch.autograd.grad(expected[0].sum() + expected[1].sin().sum(), [leaves[n] for n in names]),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("backend", COMPILED)
def test_repeats_are_bit_identical(backend):
    leaves = make((130, 200), DEVICES[backend])
    first, first_grads = run(leaves, 50, torch.bfloat16, backend)
    again, grads = run(leaves, 50, torch.bfloat16, backend)
    assert all(map(torch.equal, first, again))
    assert all(torch.equal(grads[name], first_grads[name]) for name in NAMES)


def test_backends_that_have_no_kernel():
    leaves = make((4, 3), "cpu")
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot serve this call: fold_norm has no 'cpu' kernel"):
        run(leaves, 50, torch.float32, "cpu")
    with use_backend("cpu"):  # speaks of the ops that have such a backend
        run(leaves, 50, torch.float32, None)
