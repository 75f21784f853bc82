"""fused_mlp and the projections inside PyTorch's machinery, and which backend serves them."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo.testing
from backends import DEVICES, FUSED_MLP, FUSED_PROJECTION, MLP, dtype_name
from torch.utils.checkpoint import checkpoint

from container_kernels import fused_mlp, projection, projection_with_statistics, use_backend
from container_kernels.ops.dispatch import backend as backend_module
from container_kernels.ops.dispatch import preference
from container_kernels.testing import eager_fused_mlp, eager_projection

OPERATORS = torch.ops.container_kernels


OPCHECK_CASES = [((2, 5), False, True), ((2, 5), True, False), ((2, 5), True, True), ((0, 5), True, True)]


@pytest.mark.parametrize(("tokens", "scaled", "grad"), OPCHECK_CASES)
@pytest.mark.parametrize("backend", FUSED_MLP)
def test_opcheck_fused_mlp(backend, scaled, tokens, grad):
    device = DEVICES[backend]
    scale = torch.rand(tokens[0], device=device) if scaled else None

    def arguments(grad):
        shapes = [(6, 4), (6,), (4, 6), (4,)]
        x = torch.randn(*tokens, 7, device=device)[..., 2:6]
        return [t.requires_grad_(grad) for t in (x, *(torch.randn(shape, device=device) for shape in shapes))]

    torch.library.opcheck(getattr(OPERATORS, f"fused_mlp_forward_{backend}"), (*arguments(grad), scale, True))
    *inputs, _ = arguments(False)
    grad_out = torch.randn(*tokens, 4, device=device)
    torch.library.opcheck(getattr(OPERATORS, f"fused_mlp_backward_{backend}"), (grad_out, *inputs, scale, True))


@pytest.mark.parametrize(("tokens", "options", "grad"), OPCHECK_CASES)
@pytest.mark.parametrize("backend", FUSED_PROJECTION)
def test_opcheck_projection(backend, options, tokens, grad):
    device = DEVICES[backend]
    x = torch.randn(*tokens, 7, device=device)[..., 2:6].requires_grad_(grad)
    weight, bias = (torch.randn(shape, device=device, requires_grad=grad) for shape in ((3, 4), (3,)))
    residual = torch.randn(*tokens, 3, device=device, requires_grad=grad) if options else None
    scale = torch.rand(tokens[0], device=device) if options else None
    for name in ("projection_forward", "projection_forward_with_moments"):
        torch.library.opcheck(getattr(OPERATORS, f"{name}_{backend}"), (x, weight, bias, residual, scale))
    grad_out = torch.randn(*tokens, 3, device=device, requires_grad=grad)
    torch.library.opcheck(getattr(OPERATORS, f"projection_backward_{backend}"), (grad_out, x, weight, scale))


def normalized(weight, bias, channel_sum, channel_square_sum, count):
    """`weight` and `bias` of a projection, for its input normalized (softly, to keep the gradients moderate)."""
    mean = channel_sum / count
    scale = (channel_square_sum / count - mean.square() + 1).rsqrt()
    weight = weight * scale
    return weight, bias - weight @ mean


def block(x, weight, bias, w1, b1, w2, b2, sample_scale=None):
    """The pointwise half of a CONTAINER block on a (B, H, W, C) image: what a user compiles."""
    values = projection(x, weight, bias)
    x, *statistics = projection_with_statistics(values, weight, bias, residual=x, sample_scale=sample_scale)
    w1, b1 = normalized(w1, b1, *statistics, x[..., 0].numel())
    return fused_mlp(x, w1, b1, w2, b2, residual=True, sample_scale=sample_scale)


def block_leaves(device, batch=2, grid=(4, 5), hidden=24):
    shapes = [(batch, *grid, 8), (8, 8), (8,), (hidden, 8), (hidden,), (8, hidden), (8,)]
    return [(torch.randn(shape, device=device) / 2).requires_grad_() for shape in shapes]


def factors(batch, device):
    return (torch.arange(batch, device=device) % 3) / 1.5


def assert_same(actual, expected, leaves):
    """Results and gradients."""
    torch.testing.assert_close(actual, expected)
    grads = (torch.autograd.grad(out.square().sum(), leaves) for out in (actual, expected))
    for grad, other in zip(*grads, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", FUSED_MLP)
def test_compile_fullgraph(backend, fresh_compiler):
    leaves, mask = block_leaves(DEVICES[backend]), factors(2, DEVICES[backend])
    with use_backend(backend):
        compiled = torch.compile(block, fullgraph=True)(*leaves, mask)
        assert_same(compiled, block(*leaves, mask), leaves)


def operators_of(graph_module):
    return {str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("backend", MLP)
def test_compile_dynamic_shapes(backend, fresh_compiler):
    """One graph for any batch and image, forward and backward; it shows what ran."""
    graphs = []

    def record(graph_module, inputs):
        graphs.append(operators_of(graph_module))
        return torch._dynamo.lookup_backend("aot_eager")(graph_module, inputs)

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=record)
    device = DEVICES[backend]
    with use_backend(backend):
        # No two sizes alike: the compiler would take them for one.
        for batch, grid in ((3, (4, 9)), (6, (5, 7))):
            leaves, mask = block_leaves(device, batch, grid), factors(batch, device)
            assert_same(compiled(*leaves, mask), block(*leaves, mask), leaves)
    assert len(graphs) == 1
    ours = {name.split(".")[1] for name in graphs[0] if name.startswith("container_kernels")}
    expected = {
        f"{name}_{backend}" for name in ("projection_forward", "projection_forward_with_moments", "fused_mlp_forward")
    }
    assert ours == (expected if backend in FUSED_MLP else set())


class Block(torch.nn.Module):
    def forward(self, *leaves):
        return block(*leaves)


def test_export_is_plain_pytorch(tmp_path):
    """The exported program has none of our operators, takes any batch, and survives a file."""
    example = [leaf.detach() for leaf in block_leaves("cpu")]
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)}, *[None] * 6)
    program = torch.export.export(Block(), tuple(example), dynamic_shapes=(shapes,))
    # Beside PyTorch's own operators there is Python's arithmetic on sizes.
    assert all(name.startswith(("aten.", "<built-in function")) for name in operators_of(program.graph_module))
    torch.export.save(program, tmp_path / "block.pt2")
    loaded = torch.export.load(tmp_path / "block.pt2").module()
    other = [leaf.detach() for leaf in block_leaves("cpu", batch=7)]
    with use_backend("reference"):
        torch.testing.assert_close(loaded(*other), block(*other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("backend", MLP)
def test_autocast(backend, dtype):
    """Activations and matrices go down, biases stay; gradients come back in the leaves' float32."""
    device = DEVICES[backend]
    leaves, mask = block_leaves(device), factors(2, device)
    x, weight, bias, w1, b1, w2, b2 = leaves
    low = [leaf.detach().to(dtype) if leaf.ndim > 1 else leaf.detach() for leaf in leaves]
    with torch.autocast(device, dtype):
        out = fused_mlp(x, w1, b1, w2, b2, residual=True, sample_scale=mask, backend=backend)
        projected = projection_with_statistics(x, weight, bias, residual=x, sample_scale=mask, backend=backend)
    assert torch.equal(out, fused_mlp(low[0], *low[3:], residual=True, sample_scale=mask, backend=backend))
    expected = projection_with_statistics(*low[:3], residual=low[0], sample_scale=mask, backend=backend)
    assert all(map(torch.equal, projected, expected))
    assert [t.dtype for t in (out, *projected)] == [dtype, dtype, torch.float32, torch.float32]
    grads = torch.autograd.grad(out.float().sum() + projected[0].float().sum(), leaves)
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_float64_under_autocast():
    """As a linear layer, and like the other ops: float64 is left alone."""
    x, weight, bias, *mlp = (leaf.detach() for leaf in block_leaves("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert projection(x.double(), weight, bias).dtype == torch.float64
        assert fused_mlp(x.double(), *mlp).dtype == torch.float64


def test_compile_under_autocast(fresh_compiler):
    leaves = block_leaves("cpu")
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(*leaves), block(*leaves))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("backend", MLP)
def test_activation_checkpointing(backend, use_reentrant):
    leaves, mask = block_leaves(DEVICES[backend]), factors(2, DEVICES[backend])
    with use_backend(backend):
        plain = torch.autograd.grad(block(*leaves, mask).sum(), leaves)
        out = checkpoint(block, *leaves, mask, use_reentrant=use_reentrant)
        if use_reentrant:
            out.sum().backward()
            again = [leaf.grad for leaf in leaves]
        else:
            again = torch.autograd.grad(out.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def eager_block(x, weight, bias, w1, b1, w2, b2):
    values = eager_projection(x, weight, bias)
    x = eager_projection(values, weight, bias, residual=x)
    rows = x.flatten(0, -2)
    w1, b1 = normalized(w1, b1, rows.sum(0), rows.square().sum(0), rows.shape[0])
    return eager_fused_mlp(x, w1, b1, w2, b2, residual=True)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.hessian, torch.func.jacfwd])
def test_transforms(transform):
    leaves = [leaf.detach().double() for leaf in block_leaves("cpu", 1, (1, 2), hidden=3)]

    def energy(function, w1):
        return function(*leaves[:3], w1, *leaves[4:]).sin().sum()

    actual, expected = (transform(partial(energy, function))(leaves[3]) for function in (block, eager_block))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", FUSED_MLP)
def test_a_kernel_refuses_transforms(backend):
    """Rather than lose a derivative."""
    x, weight, _, *mlp = (leaf.detach() for leaf in block_leaves(DEVICES[backend]))
    for call in (
        lambda x: projection(x, weight, backend=backend),
        lambda x: projection_with_statistics(x, weight, backend=backend)[0],
        lambda x: fused_mlp(x, *mlp, backend=backend),
    ):
        with pytest.raises(RuntimeError, match=rf"'{backend}' cannot serve this call: torch\.func transforms"):
            torch.func.jvp(call, (x,), (x,))


def test_forward_mode():
    leaves = [leaf.detach() for leaf in block_leaves("cpu")]
    tangents = [torch.randn_like(leaf) for leaf in leaves]
    expected = torch.func.jvp(eager_block, tuple(leaves), tuple(tangents))
    with torch.autograd.forward_ad.dual_level():
        duals = map(torch.autograd.forward_ad.make_dual, leaves, tangents)
        torch.testing.assert_close(tuple(torch.autograd.forward_ad.unpack_dual(block(*duals))), expected)


def test_vmap():
    x, *parameters = (leaf.detach() for leaf in block_leaves("cpu", batch=3))
    mask = factors(3, "cpu")
    batched = torch.vmap(lambda image, factor: block(image[None], *parameters, factor[None])[0])(x, mask)
    single = [block(x[i : i + 1], *parameters, mask[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(batched, torch.stack(single))


def test_meta():
    leaves = [leaf.detach().to("meta") for leaf in block_leaves("cpu")]
    out = block(*leaves, factors(2, "meta"))
    assert out.is_meta and out.shape == leaves[0].shape and out.is_contiguous()
    low = projection_with_statistics(leaves[0].bfloat16(), *leaves[1:3])
    assert [(t.dtype, tuple(t.shape)) for t in low] == [
        (torch.bfloat16, (2, 4, 5, 8)),
        (torch.float32, (8,)),
        (torch.float32, (8,)),
    ]


def ran(function):
    """The package's operators that a call of `function` runs."""
    with torch.profiler.profile(acc_events=True) as profile:
        function()
    return {e.key.removeprefix("container_kernels::") for e in profile.key_averages() if e.key.startswith("container")}


@pytest.mark.parametrize("backend", FUSED_MLP)
def test_request_is_served(backend):
    leaves = [leaf.detach() for leaf in block_leaves(DEVICES[backend])]
    expected = {
        f"{name}_{backend}" for name in ("projection_forward", "projection_forward_with_moments", "fused_mlp_forward")
    }
    with use_backend(backend):
        assert ran(lambda: block(*leaves)) == expected
    with use_backend("reference"):
        assert not ran(lambda: block(*leaves))
        x, weight, bias, *mlp = leaves
        assert ran(lambda: projection(x, weight, bias, backend=backend)) == {f"projection_forward_{backend}"}
        assert ran(lambda: fused_mlp(x, *mlp, backend=backend)) == {f"fused_mlp_forward_{backend}"}


def test_cuda_in_a_block_of_code_leaves_the_choice_open(monkeypatch):
    """These ops have no CUDA C++ kernel: a model that is asked to use it must run nevertheless."""
    leaves = [leaf.detach() for leaf in block_leaves("cpu")]
    automatic = ran(lambda: block(*leaves))
    assert not any(name.endswith("_triton") for name in automatic)  # never the interpreter
    with use_backend("cuda"):
        assert ran(lambda: block(*leaves)) == automatic
    monkeypatch.setenv("CONTAINER_KERNELS_BACKEND", "cuda")
    assert ran(lambda: block(*leaves)) == automatic


def test_cuda_by_argument_is_refused():
    x, weight, bias, *mlp = block_leaves("cpu")
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot serve this call: fused_mlp has no 'cuda' kernel"):
        fused_mlp(x, *mlp, backend="cuda")
    for function in (projection, projection_with_statistics):
        with pytest.raises(RuntimeError, match="'cuda' cannot serve this call: projection has no 'cuda' kernel"):
            function(x, weight, bias, backend="cuda")


def calls(leaves, backend):
    x, weight, _, *mlp = leaves
    yield lambda: projection(x, weight, backend=backend)
    yield lambda: projection_with_statistics(x, weight, backend=backend)
    yield lambda: fused_mlp(x, *mlp, backend=backend)


@pytest.mark.parametrize(
    ("backend", "options", "reason"),
    [
        ("cpu", {"device": "meta"}, "it takes CPU tensors, got a tensor on meta"),
        ("triton", {"device": "meta"}, "it takes CUDA tensors .* got meta"),
        ("triton", {"dtype": torch.float64}, "it takes float32, bfloat16 and float16, got float64"),
    ],
)
def test_request_that_cannot_be_served(backend, options, reason):
    leaves = [leaf.detach().to(**{"device": DEVICES[backend], **options}) for leaf in block_leaves("cpu")]
    for call in calls(leaves, backend):
        with pytest.raises(RuntimeError, match=f"backend '{backend}' cannot serve this call: {reason}"):
            call()
    assert block(*leaves).dtype == leaves[0].dtype  # the automatic choice serves


def test_triton_on_cpu_tensors_needs_the_interpreter(monkeypatch):
    monkeypatch.setattr(backend_module, "_TRITON_INTERPRETED", False)
    leaves = [leaf.detach() for leaf in block_leaves("cpu")]
    for call in calls(leaves, "triton"):
        with pytest.raises(RuntimeError, match=r"it takes CUDA tensors \(CPU tensors only .* TRITON_INTERPRET=1\)"):
            call()


@pytest.mark.parametrize(
    ("dtype", "device", "tf32", "order"),
    [
        (torch.bfloat16, "cuda", False, ("triton",)),
        (torch.float32, "cuda", True, ("triton",)),
        (torch.float32, "cuda", False, ("reference",)),  # cuBLAS, where there are no tensor cores to gain
        (torch.float32, "cpu", False, ("cpu",)),
        (torch.float32, "meta", False, ()),
    ],
)
@pytest.mark.parametrize("op", ["fused_mlp", "projection"])
def test_order_of_preference(op, dtype, device, tf32, order, monkeypatch):
    monkeypatch.setattr(preference, "_allows_tf32", lambda: tf32)
    tensor = SimpleNamespace(shape=(8, 3136, 64), dtype=dtype, device=torch.device(device))
    assert preference.order(op, tensor) == order
