"""The ops inside PyTorch's machinery: opcheck, compile, export, autocast, checkpointing, dispatch of the operators."""

import pytest
import torch
import torch._dynamo.testing
from backends import DENSE, DEVICES, FUSED, identifier, served
from torch.utils.checkpoint import checkpoint

from container_kernels import (
    context_aggregation,
    local_aggregation,
    local_aggregation_with_statistics,
    use_backend,
)
from container_kernels.ops.context_aggregation.inputs import MixArguments
from container_kernels.testing import MixCase

CASES = [MixCase(), MixCase(kernel=None), MixCase(dense=True, kernel=(3, 3), heads=1), MixCase(batch=0, packed=False)]


def mix_arguments(case, backend, grad):
    inputs = case.make(torch.float32, DEVICES[backend], grad=grad)
    (q, k, v), arguments = inputs.arguments()
    static = [arguments.get(name) for name in ("local_weight", "local_bias", "affinity")]
    return q, k, v, arguments["alpha"], *static, *(arguments["grid_size"] or (0, 0)), arguments["scale"]


@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize(("backend", "case"), served(CASES, FUSED), ids=identifier)
def test_opcheck_mix(backend, case, grad):
    arguments = mix_arguments(case, backend, grad)
    torch.library.opcheck(getattr(torch.ops.container_kernels, f"context_aggregation_forward_{backend}"), arguments)
    inputs = MixArguments(*(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments))
    batch, tokens, heads, _ = inputs.v.shape
    given = (torch.randn_like(inputs.v), torch.randn(batch, heads, tokens, device=inputs.v.device), *inputs)
    torch.library.opcheck(getattr(torch.ops.container_kernels, f"context_aggregation_backward_{backend}"), given)
    if backend == "cuda" and inputs.local_weight is not None:
        torch.library.opcheck(torch.ops.container_kernels.context_aggregation_backward_with_local_cuda, given)


@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("backend", FUSED)
def test_opcheck_local(backend, bias, grad):
    device = DEVICES[backend]
    x = torch.randn(2, 4, 5, 12, device=device)[..., 2:10].requires_grad_(grad)
    weight = torch.randn(8, 3, 5, device=device, requires_grad=grad)
    bias = torch.randn(8, device=device, requires_grad=grad) if bias else None
    torch.library.opcheck(
        getattr(torch.ops.container_kernels, f"local_aggregation_forward_{backend}"), (x, weight, bias)
    )
    torch.library.opcheck(
        getattr(torch.ops.container_kernels, f"local_aggregation_forward_with_moments_{backend}"), (x, weight, bias)
    )
    grad_out = torch.randn(2, 4, 5, 8, device=device, requires_grad=grad)
    torch.library.opcheck(
        getattr(torch.ops.container_kernels, f"local_aggregation_backward_weight_{backend}"), (grad_out, x, 3, 5)
    )


def gated(grid_size, packed, weight, bias, gate, affinity=None):
    """A small network around the op: what a user compiles."""
    q, k, v = packed.unbind(2)
    alpha = gate.sigmoid()
    y = context_aggregation(
        q,
        k,
        v,
        alpha=alpha,
        beta=1 - alpha,
        local_weight=weight,
        local_bias=bias,
        affinity=affinity,
        grid_size=grid_size,
    )
    image = y.flatten(2).unflatten(1, grid_size)
    image = local_aggregation(image, weight, bias, residual=True)
    return normalized(*local_aggregation_with_statistics(image, weight, bias)).square()


def normalized(image, channel_sum, channel_square_sum):
    """Batch normalization, softened to keep its gradients moderate."""
    count = image[..., 0].numel()
    mean = channel_sum / count
    return (image - mean) * (channel_square_sum / count - mean.square() + 1).rsqrt()


def gated_leaves(device, batch=2, grid=(4, 5), dense=True):
    tokens = grid[0] * grid[1]
    shapes = [(batch, tokens, 3, 2, 8), (16, 5, 5), (16,), (1,)] + [(2, tokens, tokens)] * dense
    return [torch.randn(shape, device=device).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_compile_fullgraph(backend, fresh_compiler):
    leaves = gated_leaves(DEVICES[backend], dense=backend in DENSE)
    with use_backend(backend):
        expected = gated((4, 5), *leaves)
        compiled = torch.compile(gated, fullgraph=True)((4, 5), *leaves)
        torch.testing.assert_close(compiled, expected)
        for grad, other in zip(
            torch.autograd.grad(compiled.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-4)


def operators_of(graph_module):
    return {str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"}


def test_compiled_graph_shows_what_ran_and_follows_the_request(fresh_compiler):
    graphs = []

    def record(graph_module, _):
        graphs.append(operators_of(graph_module))
        return graph_module

    leaves = gated_leaves("cpu")
    compiled = torch.compile(gated, fullgraph=True, backend=record)
    for name in ("cpu", "reference", "cpu"):
        with use_backend(name):
            compiled((4, 5), *leaves)
    assert len(graphs) == 2  # one a backend; the third call found the first graph
    assert "container_kernels.context_aggregation_forward_cpu" in " ".join(graphs[0])
    assert "container_kernels.local_aggregation_forward_with_moments_cpu" in " ".join(graphs[0])
    assert "container_kernels" not in " ".join(graphs[1])


def test_compile_dynamic_batch_and_grid(fresh_compiler):
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(gated, fullgraph=True, dynamic=True, backend=counter)
    # No two sizes alike: the compiler would take them for one.
    for batch, grid in ((6, (4, 9)), (7, (6, 10)), (9, (11, 4))):
        leaves = gated_leaves("cpu", batch, grid)
        torch.testing.assert_close(compiled(grid, *leaves), gated(grid, *leaves))
    assert counter.frame_count == 1


class Gated(torch.nn.Module):
    def forward(self, packed, weight, bias, gate):
        return gated((4, 5), packed, weight, bias, gate)


def test_export_is_plain_pytorch(tmp_path):
    """The exported program has none of our operators, takes any batch, and survives a file."""
    leaves = [leaf.detach() for leaf in gated_leaves("cpu", dense=False)]
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Gated(), tuple(leaves), dynamic_shapes=({0: batch}, None, None, None))
    assert not any("container_kernels" in name for name in operators_of(program.graph_module))
    torch.export.save(program, tmp_path / "gated.pt2")
    loaded = torch.export.load(tmp_path / "gated.pt2").module()
    other = [leaf.detach() for leaf in gated_leaves("cpu", batch=7, dense=False)]
    with use_backend("reference"):
        torch.testing.assert_close(loaded(*other), Gated()(*other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_autocast(backend, dtype):
    """Activations go down, parameters stay; gradients come back in the leaves' float32."""
    device = DEVICES[backend]
    leaves = gated_leaves(device)
    with torch.autocast(device, dtype):
        q, k, v = (leaves[0] * 1).unbind(2)
        # One of them already low, as a linear layer leaves it.
        out = context_aggregation(q.to(dtype), k, v, local_weight=leaves[1], grid_size=(4, 5), backend=backend)
        image = local_aggregation(torch.ones(1, 3, 3, 16, device=device), leaves[1], leaves[2], backend=backend)
        same, *statistics = local_aggregation_with_statistics(
            torch.ones(1, 3, 3, 16, device=device), leaves[1], leaves[2], backend=backend
        )
    assert out.dtype == dtype and image.dtype == dtype
    assert torch.equal(same, image) and all(statistic.dtype == torch.float32 for statistic in statistics)
    plain = context_aggregation(
        q.to(dtype), k.to(dtype), v.to(dtype), local_weight=leaves[1], grid_size=(4, 5), backend=backend
    )
    assert torch.equal(out, plain)
    grads = torch.autograd.grad(out.float().sum(), leaves[:2])
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_autocast_leaves_float64_alone():
    v = torch.randn(1, 4, 1, 8, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert context_aggregation(v, v, v).dtype == torch.float64
        # Half of it cast and half not would reach the kernel as one dtype.
        with pytest.raises(TypeError, match=r"q: expected dtype torch\.float64 as v, got torch.float32"):
            context_aggregation(v.float(), v, v)
        with pytest.raises(TypeError, match=r"k: expected dtype torch\.float32 as v, got torch.float64"):
            context_aggregation(v.float(), v, v.float())


def test_compile_under_autocast(fresh_compiler):
    leaves = gated_leaves("cpu")
    compiled = torch.compile(gated, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled((4, 5), *leaves), gated((4, 5), *leaves))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("backend", FUSED)
def test_activation_checkpointing(backend, use_reentrant):
    leaves = gated_leaves(DEVICES[backend], dense=backend in DENSE)
    with use_backend(backend):
        plain = torch.autograd.grad(gated((4, 5), *leaves).sum(), leaves)
        out = checkpoint(gated, (4, 5), *leaves, use_reentrant=use_reentrant)
        if use_reentrant:
            out.sum().backward()
            again = [leaf.grad for leaf in leaves]
        else:
            again = torch.autograd.grad(out.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_saved_for_backward_is_what_flash_attention_saves():
    """No N×N tensor is kept: the inputs, and one logsumexp a row."""
    case = MixCase(batch=1, height=16, width=16, heads=1, head_dim=4)
    inputs = case.make(torch.float32, grad=True)
    qkv, arguments = inputs.arguments()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        context_aggregation(*qkv, **arguments, backend="cpu")
    assert max(saved) <= 3 * case.tokens * case.channels
