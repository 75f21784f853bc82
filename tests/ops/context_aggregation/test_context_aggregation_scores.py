"""Scores that plain attention takes and exponents of rounded numbers might not: huge ones, and keys of -inf."""

import pytest
import torch
from backends import ALL, DENSE, DEVICES, DTYPES, dtype_name

from container_kernels import context_aggregation
from container_kernels.testing import assert_within_budget, eager_context_aggregation

# Tokens that fill no tile; kernels that hold a whole row, and for the last those that walk over it.
TOKENS = (21, 48, 131)
LONG = 300


def draw(tokens, dtype, device, head_dim=32):
    return [torch.randn(1, tokens, 2, head_dim, dtype=torch.float64).to(device, dtype) for _ in range(3)]


def run(function, qkv, **options):
    """Output and gradients for q, k and v."""
    leaves = [t.detach().requires_grad_() for t in qkv]
    out = function(*leaves, scale=1.0, **options)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    grads = torch.autograd.grad(out, leaves, grad_out.to(out.device, out.dtype))
    return dict(zip(("out", "q", "k", "v"), (out.detach(), *grads), strict=True))


def check(backend, qkv, names=("out", "q", "k", "v")):
    """The results `names` within PyTorch's own error, which is what must be finite where eager's is."""
    exact = run(context_aggregation, [t.double() for t in qkv], backend="reference")
    eager = run(eager_context_aggregation, qkv)
    actual = run(context_aggregation, qkv, backend=backend)
    for name in names:
        assert_within_budget(name, actual[name], eager[name], exact[name])
    return actual, eager


def served(tokens):
    """(backend, dtype, tokens); a row of the CUDA kernels is bounded."""
    return [
        (backend, dtype, n)
        for backend in ALL
        for dtype in DTYPES[backend]
        for n in tokens
        if backend in DENSE or n <= 131
    ]


@pytest.mark.parametrize(("backend", "dtype", "tokens"), served(TOKENS), ids=dtype_name)
def test_huge_scores(backend, dtype, tokens):
    """A score near 1e9 (1e17 in float64) is rounded by 64: a recomputed probability must be neither 2^64 nor none.

    Products of small integers are exact in any order, and some are equal.
    """
    q, k, v = draw(tokens, dtype, DEVICES[backend])
    size = 2.0 ** {torch.float64: 25, torch.float16: 8}.get(dtype, 11)  # gradients are sums of keys: 65504 at most
    q, k = ((4 * t).round().clamp(-8, 8) * size for t in (q, k))
    names = ("out", "q", "k", "v") if dtype.itemsize >= 4 else ()
    actual, _ = check(backend, (q, k, v), names)
    assert all(actual[name].isfinite().all() for name in actual)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("tokens", TOKENS)
def test_scores_of_thousands_keep_their_gradients(backend, tokens):
    """The logsumexp of a row is rounded by 1e-4 there, and with it would be all of its probabilities."""
    q, k, v = draw(tokens, torch.float32, DEVICES[backend])
    check(backend, (14 * q, 14 * k, 10 * v))


@pytest.mark.parametrize("backend", DENSE)
def test_scores_of_thousands_of_long_rows(backend):
    q, k, v = draw(LONG, torch.float32, DEVICES[backend])
    check(backend, (14 * q, 14 * k, 10 * v))


@pytest.mark.parametrize(
    ("backend", "dtype", "tokens"),
    [case for case in served((*TOKENS, LONG)) if case[1] in (torch.float32, torch.bfloat16)],
    ids=dtype_name,
)
@pytest.mark.parametrize("masked", ["first", "last"])
def test_keys_of_minus_infinity_have_no_weight(backend, dtype, tokens, masked):
    """A channel of ones in q and of -inf in k masks keys, also all of a tile. As in eager, the gradient of q is NaN in
    that channel (0 times -inf), and everything else is what it is without the masked keys."""
    q, k, v = draw(tokens, dtype, DEVICES[backend])
    count = tokens // 4 if masked == "last" else tokens * 4 // 5
    q[..., 0], k[..., 0] = 1, 0
    k[:, slice(count) if masked == "first" else slice(tokens - count, tokens), :, 0] = -torch.inf
    actual, eager = check(backend, (q / 3, k, v), ("out", "k", "v"))
    assert eager["q"][..., 0].isnan().all() and actual["q"][..., 1:].isfinite().all()


@pytest.mark.parametrize("backend", ALL)
def test_a_row_of_minus_infinity_is_nan(backend):
    q, k, v = draw(21, torch.float32, DEVICES[backend])
    q[..., 0], k[..., 0] = 1, -torch.inf
    assert context_aggregation(q, k, v, backend=backend).isnan().all()
