"""Every backend against the float64 definition, forward and backward, within PyTorch's own error."""

import pytest
import torch
from backends import ALL, CUDA_ON_GPU, DENSE, DEVICES, DTYPES, FUSED, identifier, served
from context_aggregation_cases import run, summed_by_mixing_weights

from container_kernels import context_aggregation
from container_kernels.testing import (
    MixCase,
    assert_within_budget,
    eager_context_aggregation,
    emulate_cuda,
    poisoned_outputs,
)

CASES = [
    MixCase(),  # attention + 5×5, tokens in no round number
    MixCase(kernel=None),  # attention alone
    MixCase(kernel=(3, 3), dense=True, head_dim=20),  # every term; head_dim padded on a GPU
    MixCase(kernel=None, dense=True, heads=3),  # CONTAINER-PAM
    MixCase(kernel=(7, 3), heads=1, head_dim=33, packed=False),  # oblong window
    MixCase(kernel=(9, 5), packed=False),  # windows that have no kernel of their own
    MixCase(batch=1, height=4, width=13, head_dim=9, kernel=(11, 11)),
    MixCase(batch=1, height=1, width=1),  # one token: softmax of one score
    MixCase(height=1, width=9, kernel=(7, 7)),  # window larger than the grid
    MixCase(batch=1, height=9, width=8, head_dim=32, kernel=(5, 5)),  # more than one tile of 64 tokens
    MixCase(head_dim=1, heads=4),  # the smallest head
    MixCase(batch=1, height=2, width=3, heads=1, head_dim=256, kernel=(3, 3)),  # the largest head
    MixCase(dynamic=False),  # local alone
    MixCase(dynamic=False, kernel=None, dense=True),  # (multi-head) MLP-Mixer
    MixCase(dynamic=False, dense=True, packed=False),  # both static terms
]


@pytest.mark.parametrize(
    ("backend", "dtype", "case"),
    [(backend, dtype, case) for backend, case in served(CASES) for dtype in DTYPES[backend]],
    ids=identifier,
)
def test_matches_float64(backend, dtype, case):
    inputs = case.make(dtype, DEVICES[backend], grad=True)
    exact, exact_grads = run(context_aggregation, inputs.double(), backend="reference")
    eager, eager_grads = run(eager_context_aggregation, inputs.clone())
    with poisoned_outputs():
        out, grads = run(context_aggregation, inputs, backend=backend)

    assert out.dtype == dtype and out.is_contiguous()
    assert_within_budget("out", out, eager, exact)
    terms = summed_by_mixing_weights(inputs.double(), exact)
    assert grads.keys() == exact_grads.keys()
    # beta last: it is folded into the local term, so a wrong local_bias is wrong in its gradient too.
    for name in sorted(exact_grads, key="beta".__eq__):
        assert grads[name].dtype == dtype
        assert_within_budget(
            f"gradient of {name}", grads[name], eager_grads[name], exact_grads[name], summed=terms.get(name)
        )


@pytest.mark.parametrize("backend", FUSED)
def test_float32_does_not_fall_to_tf32(backend):
    """A wrong input precision loses three digits: 1e-3 where float32 has 1e-6."""
    case = MixCase(batch=1, height=8, width=8, head_dim=64, kernel=None)
    inputs = case.make(torch.float32, DEVICES[backend])
    qkv, arguments = inputs.arguments()
    exact_qkv, exact_arguments = inputs.double().arguments()
    exact = context_aggregation(*exact_qkv, **exact_arguments, backend="reference")
    error = (context_aggregation(*qkv, **arguments, backend=backend) - exact).abs().max() / exact.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize("backend", FUSED)
def test_large_scores_do_not_overflow(backend):
    """exp(score) would be infinite; the softmax is a permutation and the values come through exactly."""
    tokens = 12
    q = 400.0 * torch.eye(tokens, device=DEVICES[backend]).view(1, tokens, 1, tokens)
    v = torch.arange(float(tokens), device=DEVICES[backend]).view(1, tokens, 1, 1).expand(1, tokens, 1, tokens)
    out = context_aggregation(q, q.roll(1, 1), v, scale=1.0, backend=backend)
    torch.testing.assert_close(out, v.roll(-1, 1), rtol=0, atol=0)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("place", ["q", "k", "v"])
def test_nan_propagates(backend, place):
    """A NaN query spoils its row, a NaN key its head, a NaN value every row that weighs it; other heads are clean."""
    case = MixCase(batch=1, packed=False)
    inputs = case.make(torch.float32, DEVICES[backend])
    inputs.leaves[place][0, 7, 0, 0] = float("nan")
    qkv, arguments = inputs.arguments()
    out = context_aggregation(*qkv, **arguments, backend=backend)
    expected = context_aggregation(*qkv, **arguments, backend="reference")
    assert torch.equal(out.isnan(), expected.isnan())


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize(("batch", "height", "width"), [(0, 3, 4), (2, 0, 4)], ids=["no images", "no tokens"])
def test_empty(backend, batch, height, width):
    case = MixCase(batch=batch, height=height, width=width, dense=backend in DENSE)
    inputs = case.make(torch.float32, DEVICES[backend], grad=True)
    out, grads = run(context_aggregation, inputs, backend=backend)
    assert out.shape == (batch, height * width, 2, 16)
    assert grads.keys() == inputs.leaves.keys()
    for name, grad in grads.items():
        assert grad.shape == inputs.leaves[name].shape
        assert not grad.count_nonzero(), name


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("layout", ["heads first", "last not contiguous", "expanded batch", "misaligned"])
def test_any_strides(backend, layout):
    case = MixCase(packed=False, head_dim=16)
    inputs = case.make(torch.float32, DEVICES[backend])
    qkv, arguments = inputs.arguments()
    relaid = {
        "heads first": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        "last not contiguous": lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
        "expanded batch": lambda t: t[:1].expand_as(t),
        "misaligned": lambda t: torch.cat([t[..., :1], t], -1)[..., 1:],
    }[layout]
    strided = [relaid(t).requires_grad_() for t in qkv]
    expected = [t.detach().contiguous().requires_grad_() for t in strided]
    out = context_aggregation(*strided, **arguments, backend=backend)
    reference = context_aggregation(*expected, **arguments, backend="reference")
    torch.testing.assert_close(out, reference)
    # .sum() hands the backward an expanded gradient, stride 0 everywhere.
    for grad, other in zip(
        torch.autograd.grad(out.sum(), strided), torch.autograd.grad(reference.sum(), expected), strict=True
    ):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FUSED)
def test_packed_projection_is_read_in_place(backend, monkeypatch):
    """The slices of a packed projection reach the kernel as they are: same memory, same strides."""
    import importlib

    kernels = importlib.import_module(f"container_kernels.ops.context_aggregation.{backend}")
    seen = {}
    forward = kernels.forward
    monkeypatch.setattr(
        kernels, "forward", lambda *args, **kwargs: (seen.update(qkv=args[0][:3]), forward(*args, **kwargs))
    )
    inputs = MixCase().make(torch.float32, DEVICES[backend])
    qkv, arguments = inputs.arguments()
    context_aggregation(*qkv, **arguments, backend=backend)
    for given, read in zip(qkv, seen["qkv"], strict=True):
        assert read.data_ptr() == given.data_ptr() and read.stride() == given.stride()


@pytest.mark.parametrize(("backend", "case"), served([CASES[2], CASES[0], CASES[7]], FUSED), ids=identifier)
def test_repeats_are_bit_identical(backend, case):
    dtype = DTYPES[backend][0]
    inputs = case.make(dtype, DEVICES[backend], grad=True)
    first, first_grads = run(context_aggregation, inputs, backend=backend)
    for _ in range(5):
        out, grads = run(context_aggregation, inputs, backend=backend)
        assert torch.equal(out, first)
        assert all(torch.equal(grads[name], first_grads[name]) for name in grads)


@pytest.mark.skipif(CUDA_ON_GPU, reason="a GPU's threads have no order")
@pytest.mark.parametrize("dtype", DTYPES["cuda"], ids=identifier)
@pytest.mark.parametrize("case", [case for backend, case in served(CASES, ["cuda"])], ids=str)
def test_cuda_bits_do_not_depend_on_the_order_of_threads(case, dtype):
    """A missing barrier shows in one order or the other."""
    inputs = case.make(dtype, grad=True)
    results = []
    for order in ("ascending", "descending"):
        with emulate_cuda(order=order), poisoned_outputs():
            results.append(run(context_aggregation, inputs, backend="cuda"))
    (out, grads), (other, other_grads) = results
    assert torch.equal(out, other)
    assert all(torch.equal(grads[name], other_grads[name]) for name in grads)


def test_cpu_bits_do_not_depend_on_threads():
    inputs = MixCase(batch=3, height=9, width=8, dense=True).make(torch.float32, grad=True)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(context_aggregation, inputs, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for out, grads in results[1:]:
        assert torch.equal(out, results[0][0])
        assert all(torch.equal(grads[name], results[0][1][name]) for name in ("packed", "alpha", "local_weight"))


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("shape", [(), (1,), (2,)], ids=str)
def test_mixing_weights_of_every_shape(backend, shape):
    inputs = MixCase(dense=backend in DENSE).make(torch.float32, DEVICES[backend])
    qkv, arguments = inputs.arguments()
    alpha = torch.full(shape, 0.3, device=DEVICES[backend], requires_grad=True)
    beta = torch.full(shape, -0.7, device=DEVICES[backend], requires_grad=True)
    out = context_aggregation(*qkv, **{**arguments, "alpha": alpha, "beta": beta}, backend=backend)
    numbers = context_aggregation(*qkv, **{**arguments, "alpha": 0.3, "beta": -0.7}, backend=backend)
    torch.testing.assert_close(out, numbers)
    grads = torch.autograd.grad(out.square().sum(), (alpha, beta))
    assert [grad.shape for grad in grads] == [alpha.shape, beta.shape]
