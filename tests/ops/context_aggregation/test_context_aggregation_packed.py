"""The mix of one packed projection: the numbers of its three slices, and one packed gradient that nothing copies."""

import pytest
import torch
from backends import DEVICES, FUSED, identifier, served
from torch.utils._python_dispatch import TorchDispatchMode

from container_kernels import context_aggregation, use_backend
from container_kernels.ops.context_aggregation import packed_context_aggregation
from container_kernels.testing import MixCase, poisoned_outputs

CASES = [
    MixCase(),
    MixCase(height=1, width=1, head_dim=5, kernel=(3, 3)),
    MixCase(height=7, width=7, heads=3, head_dim=32, kernel=(3, 5)),
    MixCase(height=4, width=5, head_dim=8, kernel=None),
    MixCase(height=4, width=5, head_dim=8, dense=True),
    MixCase(batch=0),
]


def gradients(function, leaves, case, backend):
    packed, *parameters = leaves.values()
    keywords = dict(zip(list(leaves)[1:], parameters, strict=True))
    grid_size = (case.height, case.width) if case.kernel else None
    out = function(packed, **keywords, grid_size=grid_size, backend=backend)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out, torch.autograd.grad(out, list(leaves.values()), grad_out, materialize_grads=True)


def of_slices(packed, **keywords):
    return context_aggregation(*packed.unbind(2), **keywords)


@pytest.mark.parametrize(("backend", "case"), served(CASES, ("reference", *FUSED)), ids=identifier)
def test_same_bits_as_three_slices(backend, case):
    leaves = case.make(torch.float32, DEVICES[backend], grad=True).leaves
    with poisoned_outputs():
        out, grads = gradients(packed_context_aggregation, leaves, case, backend)
    expected, expected_grads = gradients(of_slices, leaves, case, backend)
    assert torch.equal(out, expected)
    for name, grad, other in zip(leaves, grads, expected_grads, strict=True):
        assert torch.equal(grad, other), name


class Copies(TorchDispatchMode):
    """Names of the operators that move a whole tensor of this many elements."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.names = numel, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() == self.numel and not out._is_view():
            self.names.append(function.name())
        return out


@pytest.mark.parametrize("backend", FUSED)
def test_backward_glues_nothing_together(backend):
    case = MixCase(kernel=(3, 3))
    leaves = case.make(torch.float32, DEVICES[backend], grad=True).leaves
    found = {}
    for name, function in (("packed", packed_context_aggregation), ("slices", of_slices)):
        packed, alpha, beta, weight, bias = leaves.values()
        out = function(packed, alpha=alpha, beta=beta, local_weight=weight, local_bias=bias,
                       grid_size=(case.height, case.width), backend=backend)  # fmt: skip
        with Copies(packed.numel()) as copies:
            torch.autograd.grad(out, [packed, weight], torch.ones_like(out))
        found[name] = copies.names
    assert not found["packed"]
    assert found["slices"]  # what the test would find


@pytest.mark.parametrize("backend", FUSED)
def test_opcheck(backend):
    case = MixCase(height=3, width=4, kernel=(3, 3))
    packed, _, _, weight, bias = case.make(torch.float32, DEVICES[backend], grad=True).leaves.values()
    alpha = torch.ones(case.heads, device=packed.device)
    operator = getattr(torch.ops.container_kernels, f"context_aggregation_forward_packed_{backend}").default
    torch.library.opcheck(operator, (packed, alpha, weight, bias, None, 3, 4, 0.3))


def test_compiles_and_follows_autocast():
    case = MixCase()
    leaves = case.make(torch.float32, grad=True).leaves
    function = torch.compile(packed_context_aggregation, fullgraph=True)
    with use_backend("cpu"):
        out, grads = gradients(function, leaves, case, None)
    torch.testing.assert_close((out, grads), gradients(packed_context_aggregation, leaves, case, "cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = gradients(packed_context_aggregation, leaves, case, None)
    assert out.dtype == torch.bfloat16 and all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.parametrize(
    ("packed", "error", "message"),
    [
        (torch.ones(2, 4, 2, 2, 8), ValueError, r"packed: expected \(B, N, 3, M, D\), got \(2, 4, 2, 2, 8\)"),
        (torch.ones(2, 4, 3, 16), ValueError, r"packed: expected 5 dimensions \(B, N, 3, M, D\), got shape"),
        (None, TypeError, r"packed: expected a tensor \(B, N, 3, M, D\), got NoneType"),
    ],
)
def test_errors(packed, error, message):
    with pytest.raises(error, match=message):
        packed_context_aggregation(packed)
