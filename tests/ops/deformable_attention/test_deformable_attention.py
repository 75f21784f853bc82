"""Deformable attention on every backend: numbers, gradients, layouts, empty inputs, what is not finite, errors."""

import math
import random

import numpy
import pytest
import torch
import torch._dynamo.testing
from backends import ALL, DEVICES, FUSED, INTERPRETED, backends_and_dtypes, dtype_name, identifier
from deformable_attention_cases import (
    CASES,
    Case,
    assert_matches_float64,
    draw_locations,
    make,
    random_case,
    random_gradient,
    run,
    served,
)

from container_kernels import MultiScaleDeformableAttention, deformable_attention
from container_kernels.testing import eager_deformable_attention, poisoned_outputs

HALF = (torch.bfloat16, torch.float16)
# The interpreter, and the processor as a GPU, take a second where a kernel takes a millisecond.
RANDOM_PROBLEMS = {"reference": 20, "cpu": 150, "triton": 1 if INTERPRETED else 10, "cuda": 10}
HEAD_DIMS = {
    "cpu": (2, 4, 7, 9, 15, 17, 31, 63, 64, 65, 100, 128, 130, 255, 300),
    "triton": (5, 130) if INTERPRETED else (2, 7, 24, 31, 64, 65, 100, 130, 255),
    "cuda": (2, 7, 24, 31, 64, 65, 100, 255),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_eager_is_the_same(case):
    """What budgets are made of: a baseline that were wrong would allow anything."""
    leaves = make(case, torch.float64, "cpu")
    actual = run(eager_deformable_attention, case, leaves)
    torch.testing.assert_close(actual, run(deformable_attention, case, leaves, backend="reference"))


@pytest.mark.parametrize(("backend", "dtype", "case"), served(), ids=identifier)
def test_matches_float64(backend, dtype, case):
    assert_matches_float64(case, make(case, dtype, DEVICES[backend]), backend)


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("backend", ALL)
def test_float32_sampling(backend, dtype, case):
    """Locations and weights more exact than values, or less: each gradient has the dtype of its own."""
    if (backend, dtype) not in backends_and_dtypes():
        pytest.skip(f"{backend} has no {dtype}")
    assert_matches_float64(case, make(case, dtype, DEVICES[backend], torch.float32), backend)


@pytest.mark.parametrize("backend", ALL)
def test_random_problems(backend):
    draw = random.Random(0)
    for _ in range(RANDOM_PROBLEMS[backend]):
        case = random_case(draw, most_queries=12 if INTERPRETED and backend == "triton" else 60)
        dtype = draw.choice((torch.float32, torch.float32, *HALF))
        leaves = make(case, dtype, DEVICES[backend], draw.choice((None, torch.float32)))
        assert_matches_float64(case, leaves, backend, factor=3.0)


@pytest.mark.parametrize(("backend", "head_dim"), [(backend, d) for backend in FUSED for d in HEAD_DIMS[backend]])
def test_any_head_dim(backend, head_dim):
    case = Case(1, ((3, 4), (2, 2)), 6, 2, head_dim, 2)
    assert_matches_float64(case, make(case, torch.float32, DEVICES[backend]), backend)


@pytest.mark.parametrize("backend", ALL)
def test_by_hand(backend):
    """0 and 1 are the outer edges of a map, x comes first, and beyond the outer pixels a value fades to zero."""
    device = DEVICES[backend]
    value = torch.tensor([1.0, 2, 3, 4, 5, 6, 100], device=device).view(1, 7, 1, 1)  # 2 rows of 3, and a level of 1 × 1
    points = [
        [(0.5 / 3, 0.25), (0.5, 0.5)],  # pixel (0, 0); the one level's middle
        [(0.5, 0.75), (0.0, 0.5)],  # row 1, column 1; half outside
        [(2 / 3, 0.5), (0.5, 2.0)],  # between four pixels; outside
        [(1.0, 1.0), (0.5, 0.5)],  # the lower right corner: a quarter of its pixel
    ]
    locations = torch.tensor(points, device=device).view(1, 4, 1, 2, 1, 2)
    weights = torch.tensor([[1, 0.5], [2, 1], [1, 1], [4, -1]], device=device).view(1, 4, 1, 2, 1)
    out = deformable_attention(value, [(2, 3), (1, 1)], locations, weights, backend=backend)
    expected = torch.tensor([1 + 50.0, 2 * 5 + 50, (2 + 3 + 5 + 6) / 4, 4 * 6 / 4 - 100], device=device)
    torch.testing.assert_close(out.flatten(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("backend", ALL)
def test_far_outside_is_exactly_zero(backend):
    """Whatever the pixels hold; nothing overflows on the way, and no gradient flows."""
    device, case = DEVICES[backend], Case(1, ((3, 4), (1, 1)), 3, 2, 8, 2)
    leaves = make(case, torch.float32, device)
    far = torch.tensor([1e20, -1e20, math.inf, -math.inf, 3e38, 40.0], device=device)
    # Every number as a column, and as a row beside a column that is inside.
    points = torch.stack([far.repeat(8).view(24, 2), torch.stack([torch.full_like(far, 0.4), far], 1).repeat(4, 1)])
    leaves["sampling_locations"] = points.view(1, 6, 2, 2, 2, 2).requires_grad_()
    leaves["attention_weights"] = leaves["attention_weights"].detach().repeat(1, 2, 1, 1, 1).requires_grad_()
    case = case._replace(queries=6)
    nan = {**leaves, "value": torch.full_like(leaves["value"], math.nan).requires_grad_()}
    for given in (leaves, nan):
        with poisoned_outputs():
            out, grads = run(deformable_attention, case, given, backend=backend)
        assert not out.count_nonzero()
        assert not any(grad.count_nonzero() for grad in grads.values())


@pytest.mark.parametrize("backend", ALL)
def test_what_is_not_finite_stays_with_the_points_that_meet_it(backend):
    """A point half outside meets inside pixels alone: times a weight of zero, an outside one would give NaN."""
    device, case = DEVICES[backend], Case(1, ((3, 3),), 4, 1, 5, 1)
    value = torch.ones(1, 9, 1, 5, device=device)
    value[0, 0] = math.inf  # the upper left pixel
    locations = torch.tensor([(0.01, 0.01), (0.7, 0.2), (0.9, 0.95), (1.1, -0.1)], device=device).view(1, 4, 1, 1, 1, 2)
    weights = torch.ones(1, 4, 1, 1, 1, device=device)
    out = deformable_attention(value, list(case.sizes), locations, weights, backend=backend)
    assert out[0, 0].eq(math.inf).all() and out[0, 1:].isfinite().all()


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("backend", ALL)
def test_empty(backend, batch, queries):
    case = Case(batch, ((2, 3), (1, 1)), queries, 2, 4, 2)
    leaves = make(case, torch.float32, DEVICES[backend])
    with poisoned_outputs():
        out, grads = run(deformable_attention, case, leaves, backend=backend)
    assert out.shape == (batch, queries, 2, 4)
    for name, grad in grads.items():
        assert grad.shape == leaves[name].shape and not grad.count_nonzero()


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("layout", ["heads_first", "slice", "expanded", "channels_first", "offset"])
def test_any_strides(backend, layout):
    device, case = DEVICES[backend], Case(2, ((3, 4), (2, 1)), 6, 3, 8, 2)
    leaves = make(case, torch.float32, device)
    shape = leaves["value"].shape
    leaves["value"] = {
        "heads_first": torch.randn(2, 3, 14, 8, device=device).transpose(1, 2),
        "slice": torch.randn(2, 20, 5, 21, device=device)[:, 3:17, 1:4, 2:10],
        "expanded": torch.randn(1, 14, 1, 8, device=device).expand(shape),
        "channels_first": torch.randn(2, 24, 14, device=device).transpose(1, 2).unflatten(2, (3, 8)),
        "offset": torch.randn(2 * 14 * 24 + 1, device=device)[1:].view(shape),
    }[layout].requires_grad_()
    locations, weights = leaves["sampling_locations"].detach(), leaves["attention_weights"].detach()
    leaves["sampling_locations"] = locations.transpose(1, 4).contiguous().transpose(1, 4).requires_grad_()
    leaves["attention_weights"] = torch.stack([weights, weights], -1)[..., 0].requires_grad_()
    ones = torch.ones((), device=device).expand(2, 6, 3, 8)  # as .sum().backward() gives it
    for grad_out in (None, ones):
        actual = run(deformable_attention, case, leaves, grad_out, backend=backend)
        expected = run(deformable_attention, case, leaves, grad_out, backend="reference")
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", FUSED)
def test_more_than_two_to_the_31_elements(backend):
    """Addresses are of 64 bits: images, pixels and heads that lie so far apart."""
    if DEVICES[backend] == "cuda" and torch.cuda.mem_get_info()[0] < 10 << 30:
        pytest.skip("needs 10 GiB")
    case = Case(2, ((2, 2),), 5, 2, 3, 1)
    leaves = make(case, torch.bfloat16, DEVICES[backend])
    far = 2**31 // 3
    strides = (3 * far + 64, far, far // 2, 1)
    memory = torch.empty(sum(s * (n - 1) for s, n in zip(strides, (2, 4, 2, 3), strict=True)) + 1, dtype=torch.bfloat16)
    memory = memory.to(DEVICES[backend])
    value = memory.as_strided((2, 4, 2, 3), strides)
    value.copy_(leaves["value"].detach())
    assert value.storage_offset() + memory.numel() > 2**31
    expected = run(deformable_attention, case, leaves, backend=backend)
    actual = run(deformable_attention, case, {**leaves, "value": value.requires_grad_()}, backend=backend)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("backend", FUSED)
def test_repeats_are_bit_identical(backend, dtype):
    """On any number of threads; all points meet in a few pixels, where atomic sums would come in any order."""
    case = Case(2, ((2, 2), (1, 1)), 150, 2, 20, 4)
    if INTERPRETED and backend == "triton":
        case = case._replace(batch=1, queries=40, heads=1)
    leaves = make(case, dtype, DEVICES[backend], torch.float32)
    first, first_grads = run(deformable_attention, case, leaves, backend=backend)
    threads = torch.get_num_threads()
    # The interpreter has no threads that could differ.
    counts = (1,) if INTERPRETED and backend == "triton" else (1, 2, 3, 7)
    try:
        for count in counts:
            torch.set_num_threads(count)
            out, grads = run(deformable_attention, case, leaves, backend=backend)
            assert torch.equal(out, first)
            assert all(torch.equal(grads[name], first_grads[name]) for name in grads)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", ALL)
def test_all_points_on_one_spot(backend):
    case = Case(1, ((4, 4),), 90, 2, 16, 3)
    leaves = make(case, torch.float32, DEVICES[backend])
    spot = leaves["sampling_locations"].detach()[:, :1, :1, :, :1].nan_to_num(posinf=0.3, neginf=0.3).clamp(0.2, 0.3)
    leaves["sampling_locations"] = spot.expand_as(leaves["sampling_locations"]).clone().requires_grad_()
    assert_matches_float64(case, leaves, backend, factor=3.0)


@pytest.mark.parametrize("needed", [("value",), ("sampling_locations",), ("attention_weights",)], ids=str)
@pytest.mark.parametrize("backend", FUSED)
def test_gradients_of_some(backend, needed):
    case = CASES[0]
    leaves = make(case, torch.float32, DEVICES[backend])
    _, grads = run(deformable_attention, case, leaves, backend=backend)
    some = {name: leaf.detach().requires_grad_(name in needed) for name, leaf in leaves.items()}
    out = deformable_attention(spatial_shapes=case.sizes, **some, backend=backend)
    (grad,) = torch.autograd.grad(out, [some[name] for name in needed], random_gradient(out))
    assert torch.equal(grad, grads[needed[0]])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradcheck(backend):
    case = Case(1, ((3, 4), (2, 2)), 3, 2, 3, 2)
    leaves = make(case, torch.float64, "cpu")
    # A step of the finite difference is lost beside a location of 1e20.
    leaves["sampling_locations"] = leaves["sampling_locations"].detach().clamp(-9, 9).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *tensors: deformable_attention(tensors[0], case.sizes, *tensors[1:], backend=backend),
        tuple(leaves.values()),
    )


def test_second_derivatives():
    case = Case(1, ((3, 2),), 2, 1, 2, 1)
    leaves = make(case, torch.float64, "cpu")
    leaves["sampling_locations"] = leaves["sampling_locations"].detach().clamp(-9, 9).requires_grad_()

    def function(*tensors):
        return deformable_attention(tensors[0], case.sizes, *tensors[1:], backend="reference")

    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))
    for leaf in leaves.values():
        out = deformable_attention(spatial_shapes=case.sizes, **leaves, backend="cpu")
        (grad,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="'cpu' has no second derivatives; differentiate twice with backend='re"):
            grad.sum().backward()


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_autocast_leaves_locations_exact(backend, dtype):
    case, device = CASES[0], DEVICES[backend]
    leaves = make(case, torch.float32, device)
    low = {**leaves, "value": leaves["value"].detach().to(dtype).requires_grad_()}
    expected, _ = run(deformable_attention, case, low, backend=backend)
    with torch.autocast(device, dtype):
        out, grads = run(deformable_attention, case, leaves, backend=backend)
        # Weights that a linear layer left in the other half dtype.
        other = {**leaves, "attention_weights": leaves["attention_weights"].to(HALF[dtype == HALF[0]])}
        assert deformable_attention(spatial_shapes=case.sizes, **other, backend=backend).dtype == dtype
    assert out.dtype == dtype and torch.equal(out, expected)
    assert all(grad.dtype == torch.float32 for grad in grads.values())


def test_shapes_as_a_tensor():
    case = CASES[2]
    leaves = make(case, torch.float32, "cpu")
    expected = deformable_attention(spatial_shapes=case.sizes, **leaves)
    assert torch.equal(deformable_attention(spatial_shapes=torch.tensor(case.sizes), **leaves), expected)
    assert torch.equal(deformable_attention(spatial_shapes=[torch.tensor(s) for s in case.sizes], **leaves), expected)


class Sampler(torch.nn.Module):
    def forward(self, value, locations, weights):
        return deformable_attention(value, [(6, 5), (3, 3)], locations, weights)


@pytest.mark.parametrize("backend", ALL)
def test_compiles_whole(backend, fresh_compiler):
    leaves = make(CASES[0], torch.float32, DEVICES[backend])

    def function(spatial_shapes, **tensors):
        return deformable_attention(spatial_shapes=spatial_shapes, backend=backend, **tensors).square()

    expected = run(function, CASES[0], leaves)
    actual = run(torch.compile(function, fullgraph=True), CASES[0], leaves)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_one_program_for_all_sizes(fresh_compiler):
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(deformable_attention, fullgraph=True, dynamic=True, backend=counter)
    # No two sizes alike: the compiler would take them for one.
    for case in (Case(7, ((11, 13), (9, 17)), 19, 5, 16, 6), Case(8, ((12, 14), (10, 18)), 21, 5, 16, 6)):
        leaves = make(case, torch.float32, "cpu")
        tensors = (leaves["value"], list(case.sizes), leaves["sampling_locations"], leaves["attention_weights"])
        assert torch.equal(compiled(*tensors), deformable_attention(*tensors))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_autocast_keeps_float64(backend):
    case = CASES[0]
    leaves = make(case, torch.float64, "cpu")
    expected, _ = run(deformable_attention, case, leaves, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        out = deformable_attention(spatial_shapes=case.sizes, **leaves, backend=backend)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("number", [numpy.int64, torch.tensor], ids=["numpy", "tensor"])
def test_sides_of_other_kinds(number):
    case = CASES[0]
    leaves = make(case, torch.float32, "cpu")
    sizes = [(number(height), number(width)) for height, width in case.sizes]
    out = deformable_attention(spatial_shapes=sizes, **leaves)
    assert torch.equal(out, deformable_attention(spatial_shapes=case.sizes, **leaves))


class OnMaps(torch.nn.Module):
    """The layer on maps (B, C, H, W), whose sizes it takes from them."""

    def __init__(self):
        super().__init__()
        self.layer = MultiScaleDeformableAttention(embed_dim=8, num_heads=2, num_levels=2, num_points=2)
        torch.nn.init.normal_(self.layer.sampling_offsets.weight)

    def forward(self, query, reference, *maps):
        value = torch.cat([image.flatten(2).transpose(1, 2) for image in maps], 1)
        return self.layer(query, reference, value, [tuple(image.shape[2:]) for image in maps])


def on_maps(height=6, width=8):
    reference = torch.rand(2, 5, 2, 2)
    return torch.randn(2, 5, 8), reference, torch.randn(2, 8, height, width), torch.randn(2, 8, height // 2, width // 2)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes become constants, as in any trace
def test_traced():
    """In torch.jit.trace shapes are tensors."""
    network = OnMaps().requires_grad_(False)
    program = torch.jit.trace(network, on_maps())
    given = on_maps()
    torch.testing.assert_close(program(*given), network(*given), rtol=1e-5, atol=1e-5)


def test_exported_for_any_size():
    network, given = OnMaps(), on_maps()
    sides = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},) * 2
    program = torch.export.export(network, given, dynamic_shapes={"query": None, "reference": None, "maps": sides})
    for given in (on_maps(), on_maps(10, 14)):
        torch.testing.assert_close(program.module()(*given), network(*given), rtol=1e-5, atol=1e-5)


def test_exported_under_autocast_runs_with_and_without():
    network, given = OnMaps(), on_maps()
    with torch.autocast("cpu", torch.bfloat16):
        program = torch.export.export(network, given).module()
        torch.testing.assert_close(program(*given), network(*given), rtol=0.1, atol=0.05)
    out = program(*given)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, network(*given), rtol=1e-4, atol=1e-5)


def test_exported_program_leaves_out_what_is_far_outside():
    tensors = [leaf.detach() for leaf in make(CASES[0], torch.float32, "cpu").values()]
    program = torch.export.export(Sampler(), tuple(tensors)).module()
    locations = tensors[1].clone()
    locations[0, 0] = torch.tensor([math.inf, 0.5])
    locations[0, 1] = torch.tensor([0.5, math.nan])
    locations[0, 2] = 3e9
    out = program(tensors[0], locations, *tensors[2:])
    assert not out[0, :3].count_nonzero() and out[0, 3:].count_nonzero()
    torch.testing.assert_close(out, Sampler()(tensors[0], locations, *tensors[2:]), rtol=1e-5, atol=1e-5)


def test_export_is_grid_sample():
    tensors = tuple(leaf.detach() for leaf in make(CASES[0], torch.float32, "cpu").values())
    program = torch.export.export(Sampler(), tensors)
    names = {str(node.target) for node in program.graph_module.graph.nodes if node.op == "call_function"}
    assert any("grid_sampler" in name for name in names) and not any("container_kernels" in name for name in names)
    torch.testing.assert_close(program.module()(*tensors), Sampler()(*tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize("backend", FUSED)
def test_opcheck(backend, grad):
    case = Case(2, ((3, 4), (2, 1)), 5, 2, 8, 2)
    leaves = {name: leaf.detach() for name, leaf in make(case, torch.float32, DEVICES[backend]).items()}
    locations = torch.rand_like(leaves["sampling_locations"])  # opcheck compares NaN-free results
    flat = [3, 4, 2, 1]
    operators = torch.ops.container_kernels
    forward = getattr(operators, f"deformable_attention_forward_{backend}")
    tensors = [leaves["value"], locations, leaves["attention_weights"]]
    value, *sampling = (tensor.clone().requires_grad_(grad) for tensor in tensors)
    torch.library.opcheck(forward, (value, flat, *sampling))
    value, locations, weights = tensors
    grad_out = torch.randn(2, 5, 2, 8, device=value.device)
    backward_value = getattr(operators, f"deformable_attention_backward_value_{backend}")
    torch.library.opcheck(backward_value, (grad_out, flat, locations, weights))
    backward_sampling = getattr(operators, f"deformable_attention_backward_sampling_{backend}")
    torch.library.opcheck(backward_sampling, (grad_out, value, flat, locations, weights))


VALUE, LOCATIONS, WEIGHTS = torch.ones(2, 7, 3, 4), torch.ones(2, 5, 3, 2, 6, 2), torch.ones(2, 5, 3, 2, 6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"value": None}, TypeError, r"value: expected a tensor \(B, S, M, D\), got NoneType"),
        ({"value": torch.ones(2, 7, 12)}, ValueError, r"value: expected 4 dimensions \(B, S, M, D\), got shape"),
        ({"value": VALUE.int()}, TypeError, "value: expected dtype float32.* got torch.int32"),
        ({"value": VALUE[..., :0]}, ValueError, r"value: expected .* M ≥ 1 and D ≥ 1, got \(2, 7, 3, 0\)"),
        ({"value": VALUE[:, :6]}, ValueError, r"value: .* S = 7, the pixels of the levels .*, got \(2, 6, 3, 4\)"),
        ({"spatial_shapes": []}, ValueError, "spatial_shapes: expected at least one level, got none"),
        ({"spatial_shapes": 7}, TypeError, r"spatial_shapes: expected \(height, width\) of every level, got int"),
        ({"spatial_shapes": [(2, 3), (0, 1)]}, ValueError, r"spatial_shapes\[1\]: .* at least 1, got \(0, 1\)"),
        (
            {"spatial_shapes": [(2, 3), 1]},
            TypeError,
            r"spatial_shapes\[1\]: expected integers \(height, width\), got 1",
        ),
        (
            {"spatial_shapes": [(2.0, 3), (1, 1)]},
            TypeError,
            r"spatial_shapes\[0\]: expected integers .* got \(2.0, 3\)",
        ),
        ({"spatial_shapes": [(2, 3), (1, 0)]}, ValueError, r"spatial_shapes\[1\]: .* at least 1, got \(1, 0\)"),
        ({"spatial_shapes": [(True, 3), (1, 1)]}, TypeError, r"spatial_shapes\[0\]: expected integers .*\(True, 3\)"),
        ({"spatial_shapes": torch.ones(2, 2).bool()}, TypeError, "spatial_shapes: expected integers, got torch.bool"),
        ({"spatial_shapes": torch.ones(2, 2, device="meta").int()}, ValueError, "spatial_shapes: a meta tensor has no"),
        ({"attention_weights": WEIGHTS.to("meta")}, ValueError, "attention_weights: expected device cpu as value"),
        (
            {"spatial_shapes": [(2**16, 2**15)], "value": torch.empty(1).expand(1, 2**31, 1, 1)},
            ValueError,
            "value: expected at most 2147483647 pixels in all levels, got 2147483648",
        ),
        ({"spatial_shapes": torch.ones(2, 2)}, TypeError, "spatial_shapes: expected integers, got torch.float32"),
        ({"spatial_shapes": torch.ones(2).int()}, ValueError, r"spatial_shapes: expected \(L, 2\), got shape \(2,\)"),
        ({"sampling_locations": LOCATIONS[..., :1]}, ValueError, r"sampling_locations: expected .*, 2\), got"),
        ({"sampling_locations": LOCATIONS[:, :, :2]}, ValueError, r"sampling_locations: expected \(B, Q, M, L, P, 2\)"),
        ({"sampling_locations": LOCATIONS[..., :0, :]}, ValueError, "sampling_locations: expected at least one point"),
        (
            {"sampling_locations": LOCATIONS.half()},
            TypeError,
            "sampling_locations: expected dtype .*float32, .* got torch.float16",
        ),
        ({"sampling_locations": LOCATIONS.to("meta")}, ValueError, "sampling_locations: expected device cpu as value"),
        (
            {"attention_weights": WEIGHTS[:, :4]},
            ValueError,
            r"attention_weights: expected \(B, Q, M, L, P\) = \(2, 5, 3",
        ),
        (
            {"attention_weights": WEIGHTS.double()},
            TypeError,
            "attention_weights: expected dtype .*float32, .* got torch.float64",
        ),
        ({"backend": "gpu"}, ValueError, "backend: expected one of cuda, triton, cpu, reference, got 'gpu'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "value": VALUE,
        "spatial_shapes": [(2, 3), (1, 1)],
        "sampling_locations": LOCATIONS,
        "attention_weights": WEIGHTS,
    }
    with pytest.raises(error, match=message):
        deformable_attention(**{**arguments, **change})


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_wide_heads_need_another_backend(backend):
    case = Case(1, ((2, 2),), 2, 1, 257, 1)
    with pytest.raises(RuntimeError, match=f"'{backend}' cannot serve this call: it takes head_dim up to 256, got 257"):
        run(deformable_attention, case, make(case, torch.float32, DEVICES[backend]), backend=backend)


def test_locations_of_a_case_are_away_from_pixel_centres():
    locations = draw_locations(CASES[0], torch.bfloat16).double()
    pixel = locations[:, :, :, 0] * torch.tensor([5.0, 6.0]) - 0.5
    inside = pixel.abs() < 10
    assert inside.any() and ((pixel - pixel.round()).abs()[inside] >= 0.05).all()
