"""The mix's CUDA forward where its tiles, rows and accesses have edges; the rest is the suite of all backends."""

import math
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
HALVES = (torch.bfloat16, torch.float16)
EVERY = (*HALVES, torch.float32)

# Tokens around the tiles of 16, 32 and 64.
GRIDS = [(1, 1), (3, 5), (4, 4), (1, 17), (3, 11), (7, 7), (9, 7), (8, 8), (5, 13)]


def check(inputs, qkv=None):
    """Output and logsumexp of the operator against float64."""
    given, arguments = inputs.arguments()
    qkv = given if qkv is None else qkv
    (q, k, v), exact_arguments = [t.double() for t in qkv], inputs.double().arguments()[1]
    exact = context_aggregation(q, k, v, **exact_arguments, backend="reference")
    eager = eager_context_aggregation(*qkv, **arguments)
    with poisoned_outputs():
        out = context_aggregation(*qkv, **arguments, backend="cuda")
        alpha = torch.ones(v.shape[2], device=v.device)
        _, logsumexp = torch.ops.container_kernels.context_aggregation_forward_cuda(
            *qkv, alpha, None, None, None, 0, 0, arguments["scale"]
        )
    assert_within_budget("out", out, eager, exact)
    scores = torch.einsum("bimd,bjmd->bmij", q, k) * arguments["scale"]
    exact_logsumexp = scores.logsumexp(-1) / math.log(2)  # in powers of two
    torch.testing.assert_close(logsumexp.double(), exact_logsumexp, rtol=2e-6, atol=2e-6)


@CUDA
@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tokens_around_tile_edges(backend, dtype, grid):
    check(MixCase(1, *grid, heads=3, head_dim=32).make(dtype, DEVICES[backend]))


@CUDA
@pytest.mark.parametrize("head_dim", [1, 7, 8, 20, 24, 40, 65, 100, 128])
def test_head_dims_between_the_compiled_ones(backend, head_dim):
    """Odd ones have no aligned pair of channels, in the input or in the output."""
    case = MixCase(1, 4, 5, heads=3, head_dim=head_dim, kernel=(3, 3))
    for dtype in (torch.bfloat16, torch.float32):
        check(case.make(dtype, DEVICES[backend]))


@CUDA
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_unaligned_rows(backend, dtype, offset):
    """Rows that begin 2, 4 or 8 bytes after a multiple of 16, 16·D + 2, 4 or 8 bytes apart."""
    inputs = MixCase(1, 5, 4, heads=2, head_dim=16, packed=False).make(dtype, DEVICES[backend])
    qkv = [torch.cat([t[..., :offset], t], -1)[..., offset:] for t in inputs.arguments()[0]]
    check(inputs, qkv)


@CUDA
@pytest.mark.parametrize("kernel", [3, 5, 7, 11])
@pytest.mark.parametrize("grid", [(1, 1), (1, 8), (8, 1), (2, 3), (3, 2)], ids=str)
def test_windows_larger_than_the_grid(backend, kernel, grid):
    for dtype in (torch.bfloat16, torch.float32):
        check(MixCase(1, *grid, heads=2, head_dim=8, kernel=(kernel, kernel)).make(dtype, DEVICES[backend]))


@CUDA
@pytest.mark.parametrize("kernel", [None, (3, 3), (7, 7), (11, 11)], ids=str)
@pytest.mark.parametrize(
    ("grid", "head_dim"),
    [((14, 14), 32), ((18, 15), 32), ((1, 261), 32), ((2, 125), 64), ((10, 13), 64), ((5, 11), 128)],
    ids=str,
)
def test_queries_in_chunks(backend, grid, head_dim, kernel):
    """More queries than a block's warps take at once: some image rows at a time, or a part of a long one."""
    check(MixCase(1, *grid, heads=1, head_dim=head_dim, kernel=kernel).make(torch.bfloat16, DEVICES[backend]))


@CUDA
@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("logit", [30.0, 1e4])
def test_later_keys_that_dwarf_the_first(backend, dtype, logit):
    """A sum that leaves its range with the first keys' shift is computed again with the largest score of all."""
    tokens = 70
    q = torch.ones(1, tokens, 1, 16, device=DEVICES[backend], dtype=dtype)
    k = torch.linspace(-logit / 16, logit / 16, tokens, device=q.device).to(dtype).view(1, tokens, 1, 1)
    k = k.expand(1, tokens, 1, 16)
    v = torch.randn(q.shape, generator=torch.Generator().manual_seed(0)).to(q)
    for sign in (1.0, -1.0):
        out = context_aggregation(q, k, v, scale=sign, backend="cuda")
        exact = context_aggregation(q.double(), k.double(), v.double(), scale=sign, backend="reference")
        eager = eager_context_aggregation(q, k, v, scale=sign)
        assert_within_budget("out", out, eager, exact)


@CUDA
@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_scores_that_are_rounded_by_more_than_exponents_reach(backend, dtype):
    """Of 2^33, where a compiler that fuses multiplications with subtractions keeps what the shift was rounded by."""
    random = torch.Generator().manual_seed(0)
    sizes = 16384 * (1 + torch.rand(1, 40, 1, 64, generator=random) / 8)
    q = (sizes * torch.randn(sizes.shape, generator=random).sign()).to(dtype).to(DEVICES[backend])
    v = torch.randn(q.shape, generator=random).to(q)
    out = context_aggregation(q, q, v, backend="cuda")  # every key is its own query's alone
    torch.testing.assert_close(out, v, rtol=0, atol=0)


@CUDA
@pytest.mark.parametrize(
    ("dtype", "logit"),
    [(torch.bfloat16, 16.75), *((dtype, logit) for dtype in HALVES for logit in (98.4, 1e4))],
    ids=str,
)
def test_a_lone_probability_is_one(backend, dtype, logit):
    """The softmax is a permutation and the values come through exactly, also past the first keys.

    At 16.75 their shift is kept, the exponent is no power of two and what it is rounded by must cancel.
    """
    tokens = 48
    one = torch.eye(tokens, device=DEVICES[backend], dtype=dtype).view(1, tokens, 1, tokens)
    v = torch.arange(1, tokens + 1, device=one.device).to(dtype).view(1, tokens, 1, 1).expand(1, tokens, 1, tokens)
    out = context_aggregation(8 * one, logit / 8 * one.roll(1, 1), v, scale=1.0, backend="cuda")
    torch.testing.assert_close(out, v.roll(-1, 1), rtol=0, atol=0)


@CUDA
@pytest.mark.parametrize("place", ["q", "k", "v"])
def test_nan_stays_in_its_head(backend, place):
    inputs = MixCase(1, 5, 7, heads=3, head_dim=32, packed=False).make(torch.bfloat16, DEVICES[backend])
    inputs.leaves[place][0, 20, 1, 3] = float("nan")
    qkv, arguments = inputs.arguments()
    out = context_aggregation(*qkv, **arguments, backend="cuda")
    expected = context_aggregation(*qkv, **arguments, backend="reference")
    assert torch.equal(out.isnan(), expected.isnan())


@CUDA
@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_the_same_bits_again(backend, dtype):
    """Also when the threads of a block take turns in another order."""
    for case in (MixCase(1, 7, 7, heads=3, head_dim=32), MixCase(1, 10, 12, heads=1, head_dim=40, kernel=(7, 7))):
        inputs = case.make(dtype, DEVICES[backend])
        qkv, arguments = inputs.arguments()
        first = context_aggregation(*qkv, **arguments, backend="cuda")
        with nullcontext() if CUDA_ON_GPU else emulate_cuda(order="descending"):
            assert torch.equal(context_aggregation(*qkv, **arguments, backend="cuda"), first)


@CUDA
def test_shared_memory_that_a_block_asks_for(backend):
    """256 tokens fit, whatever the window, up to 128 channels; what does not fit is told as more than there is."""
    module = _extension.cuda if CUDA_ON_GPU else _extension.load_cuda_emulator()
    index = torch.cuda.current_device() if CUDA_ON_GPU else -1
    limit = module.shared_memory_limit(index)

    def needed(dtype, tokens, head_dim, height, width, window):
        sizes, grid = (1, tokens, 1, head_dim), (height, width, window, window)
        return module.context_aggregation_forward_shared_memory(_extension.DTYPE_CODES[dtype], sizes, grid)

    for tokens in (1, 49, 196, 256):
        for height in (1, 7, 16, tokens):
            if tokens % height == 0:
                for window in (0, 3, 5, 7, 11):
                    for head_dim in (1, 32, 33, 64):
                        assert needed(torch.bfloat16, tokens, head_dim, height, tokens // height, window) <= limit
                    assert needed(torch.float32, tokens, 32, height, tokens // height, window) <= limit
    for head_dim in (32, 64, 128):
        for dtype in (torch.bfloat16, torch.float32):
            rows = 2 * head_dim * dtype.itemsize
            assert needed(dtype, limit // rows + 1, head_dim, 1, limit // rows + 1, 0) > limit
