"""Local aggregation with statistics on every backend: the sums, gradients through all results, layouts, errors."""

import pytest
import torch
import torch.nn.functional as F
from backends import ALL, DEVICES, DTYPES, FUSED, INTERPRETED, backends_and_dtypes, dtype_name, identifier
from local_aggregation_cases import SHAPES, SLOW_SHAPES, make, promoted, repeats, served

from container_kernels import _extension, local_aggregation, local_aggregation_with_statistics
from container_kernels.ops.common.tensors import accumulation_dtype
from container_kernels.testing import assert_within_budget, eager_local_aggregation, poisoned_outputs

# More numbers in a sum: rows of several runs and tasks on the CPU, several strips; so many channels that few pixels
# fit a cache.
LONG_SHAPES = [(2, 9, 300, 5, 3, 3), (1, 3, 9, 1200, 3, 1), (1, 40, 30, 64, 3, 3)]
LEVELS = _extension.cpu.supported_isas() if _extension.cpu else []


def statistics_of(out, dtype=None):
    """What plain PyTorch sums in `dtype`, by default the accumulation dtype."""
    wide = out.detach().to(dtype or accumulation_dtype(out.dtype))
    return wide.sum((0, 1, 2)), wide.square().sum((0, 1, 2))


def eager_with_statistics(x, weight, bias=None, *, residual=False):
    out = eager_local_aggregation(x, weight, bias, residual=residual)
    wide = out.to(accumulation_dtype(out.dtype))
    return out, wide.sum((0, 1, 2)), wide.square().sum((0, 1, 2))


def run(function, leaves, residual=False, **options):
    results = function(*leaves, residual=residual, **options)
    random = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=random).bfloat16().to(t) for t in results]
    wanted = [t for t in leaves if t is not None]
    return results, dict(zip(("x", "weight", "bias"), torch.autograd.grad(results, wanted, grads), strict=False))


def assert_statistics_of(out, channel_sum, channel_square_sum):
    """The sums are those of `out` as it is, about as exactly as PyTorch sums them."""
    wide = out.detach().double().flatten(0, 2)
    actual = channel_sum, channel_square_sum
    for name, sums, eager, exact, terms in zip(
        ("channel_sum", "channel_square_sum"),
        actual,
        statistics_of(out),
        statistics_of(out, torch.float64),
        (wide, wide.square()),
        strict=True,
    ):
        assert sums.dtype == accumulation_dtype(out.dtype)
        worst = terms[:, terms.norm(dim=0).argmax()]
        assert_within_budget(name, sums, eager, exact, summed=worst)


@pytest.mark.parametrize(("backend", "dtype", "shape"), served(), ids=identifier)
def test_matches_float64(backend, dtype, shape):
    residual = SHAPES.index(shape) % 2 == 1  # both of it, without twice the time
    leaves = make(shape, dtype, DEVICES[backend], bias=not residual)
    (exact, *_), exact_grads = run(local_aggregation_with_statistics, promoted(leaves), residual, backend="reference")
    (eager, *_), eager_grads = run(eager_with_statistics, leaves, residual)
    with poisoned_outputs():
        (out, *sums), grads = run(local_aggregation_with_statistics, leaves, residual, backend=backend)
    assert out.dtype == dtype and out.is_contiguous()
    assert_within_budget("out", out, eager, exact)
    assert_statistics_of(out, *sums)
    for name in exact_grads:
        assert_within_budget(f"gradient of {name}", grads[name], eager_grads[name], exact_grads[name])


@pytest.mark.parametrize("shape", LONG_SHAPES, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), backends_and_dtypes(), ids=dtype_name)
def test_long_sums(backend, dtype, shape):
    """A mean beside the deviation: terms of one sign, whose rounding a careless sum would add up."""
    x, weight, bias = (t.detach() for t in make(shape, dtype, DEVICES[backend]))
    with poisoned_outputs():
        out, *sums = local_aggregation_with_statistics(x, weight, bias + 2, backend=backend)
    assert_statistics_of(out, *sums)


@pytest.mark.parametrize(
    ("backend", "shape"),
    [
        (backend, shape)
        for backend in ALL
        for shape in SHAPES + LONG_SHAPES
        if not (INTERPRETED and backend == "triton" and shape in (*SLOW_SHAPES[1:], *LONG_SHAPES))
    ],
    ids=identifier,
)
def test_same_output_as_without(backend, shape):
    leaves = make(shape, torch.float32, DEVICES[backend])
    out = local_aggregation_with_statistics(*leaves, backend=backend)[0]
    assert torch.equal(out, local_aggregation(*leaves, backend=backend))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=dtype_name)
@pytest.mark.parametrize("shape", [(2, 9, 8, 48, 5, 5), (1, 3, 16, 37, 3, 7), (2, 4, 70, 3, 3, 3), (1, 9, 5, 90, 1, 1)])
def test_every_instruction_set(level, dtype, shape):
    before = _extension.cpu.isa()
    _extension.cpu.set_isa(level)
    try:
        with poisoned_outputs():
            results = local_aggregation_with_statistics(*make(shape, dtype, "cpu"), backend="cpu")
    finally:
        _extension.cpu.set_isa(before)
    assert_statistics_of(*results)


@pytest.mark.parametrize("channels", [1, 20, 33, 80])
@pytest.mark.parametrize("backend", ALL)
def test_infinity_stays_in_its_channel(backend, channels):
    """Vectors that overlap, or that compute a channel more than once, must not mix or repeat what they sum."""
    x = torch.ones(1, 3, 4, channels, device=DEVICES[backend])
    weight = torch.ones(channels, 3, 3, device=DEVICES[backend])
    _, *finite = local_aggregation_with_statistics(x, weight, backend=backend)
    for channel in range(0, channels, 3):
        infinite = x.clone()
        infinite[0, 1, 2, channel] = torch.inf
        _, *sums = local_aggregation_with_statistics(infinite, weight, backend=backend)
        for actual, other in zip(sums, finite, strict=True):
            assert actual[channel] == torch.inf
            actual[channel] = other[channel]
            assert torch.equal(actual, other)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("layout", ["channels_last", "nchw", "slice", "expanded"])
def test_any_strides(backend, layout):
    base = torch.randn(2, 12, 5, 6, device=DEVICES[backend])
    x = {
        "channels_last": base.to(memory_format=torch.channels_last).permute(0, 2, 3, 1),
        "nchw": base.permute(0, 2, 3, 1),
        "slice": torch.randn(2, 5, 6, 30, device=DEVICES[backend])[..., 7:19],
        "expanded": base[:1, :, :1].permute(0, 2, 3, 1).expand(2, 5, 6, 12),
    }[layout].requires_grad_()
    leaves = x, torch.randn(12, 3, 3, device=DEVICES[backend], requires_grad=True), None
    results, grads = run(local_aggregation_with_statistics, leaves, backend=backend)
    expected, expected_grads = run(local_aggregation_with_statistics, leaves, backend="reference")
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("shape", [(0, 3, 3, 4), (2, 0, 3, 4)], ids=str)
def test_empty(backend, shape):
    x = torch.randn(shape, device=DEVICES[backend], requires_grad=True)
    weight = torch.randn(4, 3, 3, device=DEVICES[backend], requires_grad=True)
    bias = torch.randn(4, device=DEVICES[backend], requires_grad=True)
    with poisoned_outputs():
        out, *sums = local_aggregation_with_statistics(x, weight, bias, backend=backend)
    assert out.shape == shape
    for statistic in sums:
        assert statistic.shape == (4,) and not statistic.count_nonzero()
    (out.sum() + sum(sums).sum()).backward()
    assert x.grad.shape == shape and not weight.grad.count_nonzero() and not bias.grad.count_nonzero()


@pytest.mark.parametrize("backend", ALL)
def test_gradients_of_each_result_alone(backend):
    """What is not used adds nothing, whether it is y or a statistic."""
    leaves = make((2, 5, 6, 16, 3, 3), torch.float32, DEVICES[backend])
    results = local_aggregation_with_statistics(*leaves, backend=backend)
    expected = local_aggregation_with_statistics(*leaves, backend="reference")
    for actual, other in zip(results, expected, strict=True):
        torch.testing.assert_close(
            torch.autograd.grad(actual.square().mean(), leaves, retain_graph=True),
            torch.autograd.grad(other.square().mean(), leaves, retain_graph=True),
            rtol=1e-4,
            atol=1e-3,
        )


@pytest.mark.parametrize("backend", [name for name in ALL if torch.float64 in DTYPES[name]])
def test_gradients_to_second_order(backend):
    leaves = promoted(make((1, 3, 4, 2, 3, 5), torch.float64, DEVICES[backend]))

    def function(x, weight, bias):
        return local_aggregation_with_statistics(x, weight, bias, residual=True, backend=backend)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", ALL)
def test_batch_norm_from_the_statistics(backend):
    """What the op is for: PyTorch's BatchNorm of the output and all of its gradients, from the sums alone."""
    leaves = make((4, 6, 5, 20, 3, 3), torch.float32, DEVICES[backend])

    def from_statistics(x, weight, bias):
        out, channel_sum, square_sum = local_aggregation_with_statistics(x, weight, bias, backend=backend)
        count = out[..., 0].numel()
        mean = channel_sum / count
        return (out - mean) * (square_sum / count - mean.square() + 1e-5).rsqrt()

    def from_the_image(x, weight, bias):
        image = local_aggregation(x, weight, bias, backend="reference").permute(0, 3, 1, 2)
        return F.batch_norm(image, None, None, training=True, eps=1e-5).permute(0, 2, 3, 1)

    results = []
    for function, inputs in ((from_statistics, leaves), (from_the_image, promoted(leaves))):
        out = function(*inputs)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        results.append([t.double() for t in (out, *torch.autograd.grad(out, inputs, grad))])
    # The bias has no effect on a normalized output: its gradient is 0, up to the rounding of sums of 120 terms.
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", FUSED)
def test_repeats_are_bit_identical(backend):
    leaves = make((2, 19, 17, 40, 3, 3), torch.float32, DEVICES[backend])
    first, first_grads = run(local_aggregation_with_statistics, leaves, backend=backend)
    for _ in range(repeats(backend)):
        results, grads = run(local_aggregation_with_statistics, leaves, backend=backend)
        assert all(map(torch.equal, results, first))
        assert all(torch.equal(grads[name], first_grads[name]) for name in grads)


def test_same_bits_for_any_number_of_threads():
    x, weight, bias = make((2, 30, 17, 40, 5, 5), torch.float32, "cpu")
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(local_aggregation_with_statistics(x, weight, bias, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for others in results[1:] for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.hessian], ids=["grad", "hessian"])
def test_transforms(transform):
    x, weight, _ = (t.detach() for t in make((1, 2, 3, 2, 3, 3), torch.float64, "cpu"))

    def energy(weight, backend=None):
        out, channel_sum, square_sum = local_aggregation_with_statistics(x, weight, backend=backend)
        return out.sin().sum() + channel_sum.sin().sum() + square_sum.sin().sum()

    def eager_energy(weight):
        out, channel_sum, square_sum = eager_with_statistics(x, weight)
        return out.sin().sum() + channel_sum.sin().sum() + square_sum.sin().sum()

    torch.testing.assert_close(transform(energy)(weight), transform(eager_energy)(weight))
    with pytest.raises(RuntimeError, match=r"'cpu' cannot serve this call: torch\.func transforms"):
        transform(lambda w: energy(w, "cpu"))(weight)


def test_vmap():
    x, weight, bias = (t.detach() for t in make((3, 4, 5, 6, 3, 3), torch.float32, "cpu"))
    batched = torch.vmap(lambda image: local_aggregation_with_statistics(image[None], weight, bias))(x)
    single = [local_aggregation_with_statistics(image[None], weight, bias, backend="reference") for image in x]
    torch.testing.assert_close(batched, tuple(torch.stack(t) for t in zip(*single, strict=True)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, r"x: expected a tensor \(B, H, W, C\), got NoneType"),
        ({"x": torch.ones(2, 3, 4)}, ValueError, r"x: expected 4 dimensions \(B, H, W, C\), got shape \(2, 3, 4\)"),
        ({"weight": torch.ones(5, 3, 3)}, ValueError, r"weight: expected .* = \(4, odd, odd\), got \(5, 3, 3\)"),
        ({"bias": torch.ones(5)}, ValueError, r"bias: expected \(C,\) = \(4,\), got \(5,\)"),
        ({"backend": "gpu"}, ValueError, "backend: expected one of cuda, triton, cpu, reference, got 'gpu'"),
        (
            {
                "x": torch.ones(1, 2, 2, 4, device="meta"),
                "weight": torch.ones(4, 3, 3, device="meta"),
                "backend": "cpu",
            },
            RuntimeError,
            "backend 'cpu' cannot serve this call: it takes CPU tensors, got a tensor on meta",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"x": torch.ones(1, 2, 2, 4), "weight": torch.ones(4, 3, 3)}
    with pytest.raises(error, match=message):
        local_aggregation_with_statistics(**{**arguments, **change})
