"""Inputs that the Triton mix takes another way: scales of any sign, tokens that do not start at 16-byte multiples."""

import pytest
import torch
from backends import DEVICES, DTYPES
from context_aggregation_cases import gradient_of, run, summed_by_mixing_weights

from container_kernels import context_aggregation
from container_kernels.ops.context_aggregation.triton import alignment
from container_kernels.testing import MixCase, assert_within_budget, eager_context_aggregation, poisoned_outputs

pytest.importorskip("triton")
DEVICE = DEVICES["triton"]
# Whole rows in one tile, and several tiles of keys with a partial one.
GRIDS = {"row": MixCase(batch=1, height=5, width=5, head_dim=16), "tiles": MixCase(1, 19, 14, 1, 16, kernel=None)}


# Scores are in float32, whatever the dtype.
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, scale) for scale in (-0.3, 0.0, 1e-30, 0.3)]
    + [(dtype, scale) for dtype in DTYPES["triton"] if dtype != torch.float32 for scale in (-0.3, 0.0)],
    ids=str,
)
@pytest.mark.parametrize("case", GRIDS.values(), ids=GRIDS)
def test_scales_of_any_sign(case, scale, dtype):
    """The largest score is the largest product only where the scale is positive; absent keys weigh 0 at scale 0 too."""

    def with_scale(function, inputs, **options):
        qkv, arguments = inputs.arguments()
        out = function(*qkv, **(arguments | {"scale": scale}), **options)
        return out, inputs.gradients(out, gradient_of(out))

    inputs = case.make(dtype, DEVICE, grad=True)
    exact, exact_grads = with_scale(context_aggregation, inputs.double(), backend="reference")
    eager, eager_grads = with_scale(eager_context_aggregation, inputs.clone())
    with poisoned_outputs():
        out, grads = with_scale(context_aggregation, inputs, backend="triton")
    assert_within_budget("out", out, eager, exact)
    # Of the terms that are rounded, those of the default scale are the larger ones.
    terms = summed_by_mixing_weights(inputs.double(), exact)
    for name in exact_grads:
        assert_within_budget(name, grads[name], eager_grads[name], exact_grads[name], summed=terms.get(name))


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, one element off 16 bytes."""
    room = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return room[1:].view(tensor.shape).copy_(tensor)


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers with rows of tokens that are an odd number of elements apart."""
    batch, tokens, heads, head_dim = tensor.shape
    room = torch.zeros(batch, tokens, heads * head_dim + 1, dtype=tensor.dtype, device=tensor.device)
    return room[..., :-1].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("move", [shifted, spread])
def test_tokens_that_are_not_aligned_give_the_same_bits(move):
    """Copies are a matter of speed alone; and tokens that are aligned are not copied."""
    case = MixCase(batch=2, height=5, width=4, heads=3, head_dim=8, packed=False)
    inputs = case.make(torch.bfloat16, DEVICE)
    (q, k, v), arguments = inputs.arguments()
    assert all(alignment.readable(tensor) is tensor for tensor in (q, k, v))
    assert all(alignment.readable(move(tensor)).stride() == q.stride() for tensor in (q, k, v))

    def results(tensors):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        out = context_aggregation(*leaves, **arguments, backend="triton")
        return out, *torch.autograd.grad(out, leaves, gradient_of(out).to(out.dtype))

    for ours, expected in zip(results(map(move, (q, k, v))), results((q, k, v)), strict=True):
        assert torch.equal(ours, expected)


def test_a_dimension_of_one_element_has_any_stride():
    tensor = torch.randn(1, 5, 1, 8, dtype=torch.bfloat16, device=DEVICE).as_strided((1, 5, 1, 8), (3, 8, 5, 1))
    assert alignment.readable(tensor) is tensor


def test_tokens_too_far_apart_for_32_bits_are_copied():
    """As in a (N, B, M, D) tensor of a huge batch: a tile's offsets would wrap around."""
    far = torch.empty_strided((1, 3, 1, 8), (8, 2**23, 8, 1), dtype=torch.bfloat16, device="meta")
    near = torch.empty_strided((1, 3, 1, 8), (8, 2**22, 8, 1), dtype=torch.bfloat16, device="meta")
    assert alignment.readable(far).is_contiguous()
    assert alignment.readable(near) is near


@pytest.mark.parametrize("head_dim", [1, 9, 33])
def test_heads_of_odd_width_are_widened_by_nothing(head_dim):
    """Channels of zeros change no score, and no value of those that exist; the window's filters move with them."""
    case = MixCase(batch=1, height=4, width=5, heads=3, head_dim=head_dim, kernel=(3, 3), dense=True)
    inputs = case.make(torch.float32, DEVICE, grad=True)
    exact, exact_grads = run(context_aggregation, inputs.double(), backend="reference")
    out, grads = run(context_aggregation, inputs, backend="triton")
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad.double(), exact_grads[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", GRIDS.values(), ids=GRIDS)
def test_gradients_of_huge_scores_are_finite(case):
    """A score near 1e9 is rounded by 64: recomputed from logsumexp, a probability must not become 2^64."""
    inputs = case.make(torch.float32, DEVICE)
    (q, k, v), arguments = inputs.arguments()
    leaves = [(3e4 * q).detach().requires_grad_(), (3e4 * k).detach().requires_grad_(), v.detach().requires_grad_()]
    out = context_aggregation(*leaves, **arguments, backend="triton")
    for grad in torch.autograd.grad(out, leaves, gradient_of(out).to(out.dtype)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("case", GRIDS.values(), ids=GRIDS)
def test_scale_zero_is_zero_whatever_the_products(case):
    """Products of 1e37 times the smallest scale that there is would be scores, not zeros."""
    inputs = case.make(torch.float32, DEVICE)
    (q, k, v), arguments = inputs.arguments()
    q, k = (torch.full_like(t, 10.0**18) * t.sign() for t in (q, k))
    settings = arguments | {"scale": 0.0}
    out = context_aggregation(q, k, v, **settings, backend="triton")
    torch.testing.assert_close(out, context_aggregation(q, k, v, **settings, backend="reference"), rtol=1e-5, atol=1e-6)
