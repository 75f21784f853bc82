"""The gradient through statistics by channel: one rounding, any shape; plain PyTorch where it is differentiated."""

import pytest
import torch
from backends import DEVICES, DTYPES, dtype_name

from container_kernels import projection_with_statistics, use_backend
from container_kernels.ops.statistics import gradient_through_statistics
from container_kernels.ops.statistics.gradient import COMPILED
from container_kernels.testing import poisoned_outputs

SHAPES = [(1, 1), (2, 3, 5, 64), (3, 7, 37), (1, 40, 200), (513, 8), (0, 4, 16)]


def make(shape, dtype, device):
    random = torch.Generator().manual_seed(sum(shape))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    out, grad_out = (torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).to(device) for _ in range(2))
    grads = (torch.randn(shape[-1:], generator=random, dtype=torch.float64).to(wide).to(device) for _ in range(2))
    return out, grad_out, out.to(wide).flatten(0, -2).sum(0), *grads


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("backend", "dtype"), [(name, dtype) for name in ("reference", *COMPILED) for dtype in DTYPES[name]], ids=dtype_name
)
@torch.no_grad()
def test_matches_float64(backend, dtype, shape):
    inputs = out, grad_out, channel_sum, grad_sum, grad_m2 = make(shape, dtype, DEVICES[backend])
    with poisoned_outputs():
        total = gradient_through_statistics(backend, *inputs)
    mean = channel_sum.double() / max(1, out[..., 0].numel())
    terms = [grad_out.double(), grad_sum.double(), *(2 * t * grad_m2.double() for t in (out.double(), mean))]
    exact = terms[0] + terms[1] + terms[2] - terms[3]
    # One rounding to the dtype, and in the accumulation dtype one for each of the five operations.
    wide = torch.finfo(grad_sum.dtype).eps
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 5 / 2 * wide * sum(t.abs() for t in terms)
    assert total.dtype == dtype and ((total.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("backend", COMPILED)
@torch.no_grad()
def test_any_strides(backend):
    out, grad_out, *vectors = make((2, 3, 5, 16), torch.float32, DEVICES[backend])
    expected = gradient_through_statistics(backend, out, grad_out, *vectors)
    turned = grad_out.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(gradient_through_statistics(backend, out, turned, *vectors), expected)
    broadcast = torch.ones((), device=out.device).expand_as(out)
    assert torch.equal(
        gradient_through_statistics(backend, out, broadcast, *vectors),
        gradient_through_statistics(backend, out, torch.ones_like(out), *vectors),
    )


def test_what_is_asked_for_during_the_backward_pass_does_not_count():
    """The forward pass has chosen; a request that cannot serve would only break its backward."""
    x, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    y, channel_sum, _ = projection_with_statistics(x, weight, backend="reference")
    expected = torch.autograd.grad(y.sin().sum() + channel_sum.sin().sum(), [x, weight])
    y, channel_sum, _ = projection_with_statistics(x, weight, backend="cpu")
    with use_backend("cuda"):
        grads = torch.autograd.grad(y.sin().sum() + channel_sum.sin().sum(), [x, weight])
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("backend", COMPILED)
def test_operator(backend):
    inputs = make((3, 7, 37), torch.float32, DEVICES[backend])
    operator = getattr(torch.ops.container_kernels, f"statistics_gradient_{backend}").default
    torch.library.opcheck(operator, inputs)
    inputs[1].requires_grad_()
    assert gradient_through_statistics(backend, *inputs).grad_fn.name().startswith("Add")
    with pytest.raises(RuntimeError, match="has no second derivatives"):
        operator(*inputs).sum().backward()
