"""The mix's CUDA backward where its tiles, warps and accesses have edges; the rest is the suite of all backends."""

from contextlib import nullcontext

import pytest
import torch
from backends import CUDA_ON_GPU, DEVICES

from container_kernels import _extension, context_aggregation
from container_kernels.testing import (
    MixCase,
    assert_within_budget,
    eager_context_aggregation,
    emulate_cuda,
    poisoned_outputs,
)

CUDA = pytest.mark.parametrize("backend", ["cuda"])  # the parameter that lets it run without a GPU
EVERY = (torch.bfloat16, torch.float16, torch.float32)


def random_like(out, seed=1):
    """An output gradient of numbers that every dtype can hold."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to(out.device)


def gradients(function, qkv, arguments, grad_out, **options):
    """Gradients of ⟨out, grad_out⟩ for q, k, v and every tensor argument that `out` depends on, by name."""
    leaves = dict(zip("qkv", qkv, strict=True))
    leaves |= {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    others = {name: leaves.get(name, value) for name, value in arguments.items()}
    out = function(leaves["q"], leaves["k"], leaves["v"], **others, **options)
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out.to(out.dtype), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}


def check(inputs, qkv=None, relay=lambda grad_out: grad_out):
    """Every gradient against float64; `relay` gives the output gradient other strides."""
    given, arguments = inputs.arguments()
    qkv = given if qkv is None else qkv
    grad_out = random_like(qkv[2])
    exact_arguments = inputs.double().arguments()[1]
    exact = gradients(context_aggregation, [t.double() for t in qkv], exact_arguments, grad_out, backend="reference")
    eager = gradients(eager_context_aggregation, qkv, arguments, grad_out)
    with poisoned_outputs():
        actual = gradients(context_aggregation, qkv, arguments, relay(grad_out.to(qkv[2].dtype)), backend="cuda")
    out = context_aggregation(*(t.double() for t in qkv), **exact_arguments, backend="reference")
    terms = {"alpha": terms_of_alpha(qkv, exact_arguments["scale"], grad_out), "beta": grad_out.double() * out}
    for name in exact:
        if name in "qk" and qkv[0].shape[1] == 1:  # zero, the difference of two numbers as large as v's gradient
            noise = torch.finfo(torch.float32).eps * exact["v"].abs().max().item()
            assert actual[name].abs().max().item() <= 4 * noise, name
            continue
        assert_within_budget(f"gradient of {name}", actual[name], eager[name], exact[name], summed=terms.get(name))


def terms_of_alpha(qkv, scale, grad_out):
    """P ∘ G, of which alpha's gradient is the sum, weighed by the scores: P is exp of a rounded one less another."""
    q, k, v = (t.double() for t in qkv)
    scores = torch.einsum("bimd,bjmd->bmij", q, k) * scale
    products = scores.softmax(-1) * torch.einsum("bimd,bjmd->bmij", grad_out.double(), v)
    return products * (1 + scores.abs() + scores.logsumexp(-1, keepdim=True).abs())


@CUDA
@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize(
    "grid", [(1, 1), (3, 5), (4, 4), (1, 17), (1, 31), (3, 11), (7, 7), (9, 7), (8, 8), (5, 13)], ids=str
)
def test_tokens_around_tile_edges(backend, dtype, grid):
    """Tiles are 16 tokens; a warp has one or two of them."""
    check(MixCase(2, *grid, heads=3, head_dim=32, kernel=(3, 3)).make(dtype, DEVICES[backend]))


@CUDA
@pytest.mark.parametrize("kernel", [None, (5, 5), (7, 7)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "grid", "head_dim"),
    [
        (torch.bfloat16, (14, 14), 32),
        (torch.float32, (14, 14), 32),
        (torch.float16, (11, 12), 64),
        (torch.bfloat16, (8, 16), 128),
    ],
    ids=str,
)
def test_many_warps(backend, dtype, grid, head_dim, kernel):
    check(MixCase(1, *grid, heads=1, head_dim=head_dim, kernel=kernel).make(dtype, DEVICES[backend]))


@CUDA
@pytest.mark.parametrize("head_dim", [1, 7, 8, 20, 24, 33, 40, 65, 100, 128])
def test_head_dims_between_the_compiled_ones(backend, head_dim):
    """Odd ones have no aligned pair of channels, in the input or in the output."""
    case = MixCase(1, 4, 5, heads=3, head_dim=head_dim, kernel=(3, 3))
    for dtype in (torch.bfloat16, torch.float32):
        check(case.make(dtype, DEVICES[backend]))


@CUDA
@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_unaligned_rows(backend, dtype, offset):
    """Rows that begin 2, 4 or 8 bytes after a multiple of 16, 16·D + 2, 4 or 8 bytes apart."""
    inputs = MixCase(1, 5, 4, heads=2, head_dim=16, packed=False).make(dtype, DEVICES[backend])

    def relay(t):
        return torch.cat([t[..., :offset], t], -1)[..., offset:]

    check(inputs, [relay(t) for t in inputs.arguments()[0]], relay)


@CUDA
@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize(
    "relay",
    [
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        lambda t: torch.stack([t, t], 2)[:, :, 1],
        lambda t: t[:1].expand_as(t),
    ],
    ids=["heads first", "between others", "expanded"],
)
def test_strides(backend, dtype, relay):
    inputs = MixCase(1, 5, 4, heads=3, head_dim=16, packed=False).make(dtype, DEVICES[backend])
    check(inputs, [relay(t) for t in inputs.arguments()[0]], relay)


@CUDA
@pytest.mark.parametrize("kernel", [3, 5, 7, 11])
@pytest.mark.parametrize("grid", [(1, 1), (1, 8), (8, 1), (2, 3), (3, 2), (1, 15)], ids=str)
def test_windows_larger_than_the_grid(backend, kernel, grid):
    for dtype in (torch.bfloat16, torch.float32):
        check(MixCase(2, *grid, heads=2, head_dim=8, kernel=(kernel, kernel)).make(dtype, DEVICES[backend]))


@CUDA
@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_alpha_zero(backend, dtype):
    """Nothing is divided by it: its own gradient is there, those of q and k are zeros."""
    inputs = MixCase(1, 5, 7, heads=2, head_dim=32).make(dtype, DEVICES[backend])
    inputs.leaves["alpha"].zero_()
    qkv, arguments = inputs.arguments()
    grads = gradients(context_aggregation, qkv, arguments, random_like(qkv[2]), backend="cuda")
    assert not grads["q"].count_nonzero() and not grads["k"].count_nonzero()
    assert grads["alpha"].count_nonzero() == 2
    check(inputs)


@CUDA
@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("shift", [-2e3, 2e3])
def test_scores_far_from_zero(backend, dtype, shift):
    """exp of them is 0 or infinite; so would be that of the rows of zeros behind the last key, less a logsumexp."""
    tokens = 21
    q, k, v = (torch.randn(1, tokens, 1, 16, device=DEVICES[backend]).to(dtype) for _ in range(3))
    q[..., 0], k[..., 0] = abs(shift) ** 0.5, shift / abs(shift) ** 0.5
    grad_out, arguments = random_like(v), {"scale": 1.0}
    exact = gradients(context_aggregation, [t.double() for t in (q, k, v)], arguments, grad_out, backend="reference")
    eager = gradients(eager_context_aggregation, (q, k, v), arguments, grad_out)
    actual = gradients(context_aggregation, (q, k, v), arguments, grad_out, backend="cuda")
    for name in exact:
        assert_within_budget(f"gradient of {name}", actual[name], eager[name], exact[name])


@CUDA
def test_only_the_local_gradients_that_are_wanted(backend):
    """A frozen local weight's gradient is left out, and the others keep their bits."""
    inputs = MixCase(2, 7, 7, heads=3, head_dim=32).make(torch.bfloat16, DEVICES[backend])
    qkv, arguments = inputs.arguments()
    grad_out = random_like(qkv[2])
    grads = gradients(context_aggregation, qkv, arguments, grad_out, backend="cuda")
    qkv = [t.detach().requires_grad_() for t in qkv]
    out = context_aggregation(*qkv, **arguments, backend="cuda")
    for name, grad in zip("qkv", torch.autograd.grad(out, qkv, grad_out.to(out.dtype)), strict=True):
        assert torch.equal(grad, grads[name])


@CUDA
@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        MixCase(3, 7, 7, heads=3, head_dim=32),
        MixCase(2, 5, 13, heads=1, head_dim=40, kernel=(7, 7)),
        MixCase(2, 6, 6, heads=2, head_dim=100, kernel=(3, 3)),
    ],
    ids=str,
)
def test_the_same_bits_again(backend, dtype, case):
    """Also when the threads of a block take turns in another order."""
    inputs = case.make(dtype, DEVICES[backend])
    qkv, arguments = inputs.arguments()
    grad_out = random_like(qkv[2])
    grads = gradients(context_aggregation, qkv, arguments, grad_out, backend="cuda")
    with nullcontext() if CUDA_ON_GPU else emulate_cuda(order="descending"):
        again = gradients(context_aggregation, qkv, arguments, grad_out, backend="cuda")
    for name, grad in grads.items():
        assert torch.equal(grad, again[name]), name


@CUDA
@pytest.mark.parametrize(
    ("dtype", "head_dim", "most"),
    [(torch.bfloat16, 32, 512), (torch.float16, 64, 256), (torch.bfloat16, 128, 128), (torch.float32, 32, 256)],
    ids=str,
)
def test_more_keys_than_warps_are_refused(backend, dtype, head_dim, most):
    module = _extension.cuda if CUDA_ON_GPU else _extension.load_cuda_emulator()
    code = _extension.DTYPE_CODES[dtype]

    def needed(tokens):
        return module.context_aggregation_backward_shared_memory(code, (1, tokens, 1, head_dim), (1, tokens, 7, 7))

    assert needed(most) < 1 << 18 < needed(most + 1)
