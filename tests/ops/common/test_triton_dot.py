"""Products of tiles: what kernels that recompute a product another way round rely on."""

import pytest
import torch
import triton
import triton.language as tl
from backends import DEVICES

from container_kernels.ops.common.triton_primitives import dot


@triton.jit
def both_ways_kernel(q_ptr, k_ptr, qk_ptr, kq_ptr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    channels = tl.arange(0, D)[None, :]
    q = tl.load(q_ptr + tl.arange(0, M)[:, None] * D + channels)
    k = tl.load(k_ptr + tl.arange(0, N)[:, None] * D + channels)
    cells = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(qk_ptr + cells, dot(q, tl.trans(k), tl.zeros([M, N], tl.float32), "ieee"))
    tl.store(kq_ptr + cells, tl.trans(dot(k, tl.trans(q), tl.zeros([N, M], tl.float32), "ieee")))


@pytest.mark.parametrize("shape", [(16, 16, 16), (16, 64, 32), (64, 32, 64), (32, 32, 128)], ids=str)
def test_products_have_the_same_bits_both_ways_round(shape):
    """backward_key.py makes k·q of what the forward normalized as q·k: one ulp of a score of thousands is 1e-4."""
    queries, keys, head_dim = shape
    q = torch.randn(queries, head_dim, device=DEVICES["triton"])
    k = torch.randn(keys, head_dim, device=DEVICES["triton"])
    qk, kq = q.new_empty(queries, keys), q.new_empty(queries, keys)
    both_ways_kernel[(1,)](q, k, qk, kq, *shape)
    assert torch.equal(qk, kq)
    torch.testing.assert_close(qk, q @ k.T, rtol=1e-5, atol=1e-5)
