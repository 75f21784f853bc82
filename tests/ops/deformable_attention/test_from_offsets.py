"""`deformable_attention_from_offsets`: what it computes, its gradients, what 16 bits leave of it, its errors."""

import pytest
import torch
from backends import ALL, DEVICES
from deformable_attention_cases import Case, draw_locations, random_gradient

from container_kernels import deformable_attention, deformable_attention_from_offsets
from container_kernels.testing import assert_within_budget, eager_deformable_attention

CASE = Case(2, ((6, 5), (3, 4), (1, 1)), 5, 2, 8, 3)
LARGE = Case(1, ((100, 167),), 300, 4, 16, 4)


def by_hand(value, spatial_shapes, reference_points, sampling_offsets, attention_logits):
    """Level by level, as the docstring has it."""
    points = sampling_offsets.shape[-2]
    locations = []
    for level, (height, width) in enumerate(spatial_shapes):
        reference = reference_points[:, :, None, None, level]
        offset = sampling_offsets[:, :, :, level]
        if reference.shape[-1] == 2:
            x = reference[..., 0] + offset[..., 0] / width
            y = reference[..., 1] + offset[..., 1] / height
        else:
            x = reference[..., 0] + offset[..., 0] * reference[..., 2] / 2 / points
            y = reference[..., 1] + offset[..., 1] * reference[..., 3] / 2 / points
        locations.append(torch.stack([x, y], -1))
    weights = attention_logits.exp() / attention_logits.exp().sum((-2, -1), keepdim=True)
    return eager_deformable_attention(value, spatial_shapes, torch.stack(locations, 3), weights)


def make(case: Case, coordinates: int, dtype=torch.float32, device="cpu"):
    """Leaves by name, whose locations lie away from pixel centres."""
    shape = (case.batch, case.queries, case.heads, len(case.sizes), case.points)
    reference = torch.rand(case.batch, case.queries, len(case.sizes), coordinates) * 0.9 + 0.1
    step = torch.tensor(case.sizes).flip(-1)[:, None].reciprocal()
    if coordinates == 4:
        step = reference[:, :, None, :, None, 2:] / (2 * case.points)
    locations = draw_locations(case, torch.float32).clamp(-1.7, 2.3)
    offsets = (locations - reference[:, :, None, :, None, :2]) / step
    leaves = {
        "value": torch.randn(case.batch, case.pixels, case.heads, case.head_dim),
        "reference_points": reference,
        "sampling_offsets": offsets,
        "attention_logits": torch.randn(shape),
    }
    return {name: leaf.to(device, dtype).requires_grad_() for name, leaf in leaves.items()}


def run(function, case, leaves, **options):
    out = function(spatial_shapes=list(case.sizes), **leaves, **options)
    return out, torch.autograd.grad(out, list(leaves.values()), random_gradient(out))


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("backend", ALL)
def test_matches_float64(backend, coordinates):
    leaves = make(CASE, coordinates, device=DEVICES[backend])
    double = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    exact, exact_grads = run(by_hand, CASE, double)
    eager, eager_grads = run(by_hand, CASE, leaves)
    out, grads = run(deformable_attention_from_offsets, CASE, leaves, backend=backend)
    assert out.is_contiguous()
    assert_within_budget("out", out, eager, exact, factor=3.0)
    for name, grad, of_eager, of_exact in zip(leaves, grads, eager_grads, exact_grads, strict=True):
        assert_within_budget(f"gradient of {name}", grad, of_eager, of_exact, factor=3.0)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_matches_in_float64(coordinates):
    leaves = make(CASE, coordinates, torch.float64)
    torch.testing.assert_close(
        run(deformable_attention_from_offsets, CASE, leaves), run(by_hand, CASE, leaves), rtol=1e-11, atol=1e-11
    )


def relative_error(actual, exact):
    return ((actual.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("coordinates", [2, 4])
def test_offsets_in_bfloat16_are_enough(coordinates):
    """On a map of 100 × 167, where locations in bfloat16 are not: it keeps 1/512 of them, a third of a pixel.

    Of an offset, too, it keeps 1/512, so boxes must not be much larger than these: up to a seventh of the map.
    """
    case = LARGE
    shape = (case.batch, case.queries, case.heads, 1, case.points)
    points = torch.rand(case.batch, case.queries, 1, 2) * 0.8 + 0.1
    boxes = torch.rand(case.batch, case.queries, 1, coordinates - 2) * 0.1 + 0.04
    reference = torch.cat([points, boxes], -1)
    # Up to four pixels, as a layer starts; of boxes, half their size.
    offsets = (torch.rand(*shape, 2) * 2 - 1) * 4
    value, logits = torch.randn(case.batch, case.pixels, case.heads, case.head_dim), torch.randn(shape)
    exact_given = (value, case.sizes, reference, offsets, logits)
    exact = by_hand(*(tensor.double() if isinstance(tensor, torch.Tensor) else tensor for tensor in exact_given))

    given = {"value": value.bfloat16(), "spatial_shapes": case.sizes, "reference_points": reference}
    low = {"sampling_offsets": offsets.bfloat16(), "attention_logits": logits.bfloat16()}
    out = deformable_attention_from_offsets(**given, **low)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, exact) < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        out = deformable_attention_from_offsets(**{**given, "value": value}, **low)
    assert out.dtype == torch.bfloat16 and relative_error(out, exact) < 0.02

    sides = torch.tensor([167.0, 100])
    step = 1 / sides if coordinates == 2 else reference[:, :, None, :, None, 2:] / (2 * case.points)
    locations = reference[:, :, None, :, None, :2] + offsets * step
    weights = logits.flatten(-2).softmax(-1).view(shape)
    rounded = deformable_attention(value, case.sizes, locations.bfloat16().float(), weights)
    assert relative_error(rounded, exact) > 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_have_the_dtype_of_their_tensors(dtype):
    leaves = make(CASE, 2)
    for name in ("value", "sampling_offsets", "attention_logits"):
        leaves[name] = leaves[name].detach().to(dtype).requires_grad_()
    _, grads = run(deformable_attention_from_offsets, CASE, leaves)
    for leaf, grad in zip(leaves.values(), grads, strict=True):
        assert grad.dtype == leaf.dtype and grad.isfinite().all() and grad.count_nonzero()


def test_errors_name_the_argument():
    leaves = {name: leaf.detach() for name, leaf in make(CASE, 2).items()}

    def refuse(error, match, spatial_shapes=CASE.sizes, **changes):
        with pytest.raises(error, match=match):
            deformable_attention_from_offsets(**{**leaves, "spatial_shapes": spatial_shapes, **changes})

    offsets, logits, reference = leaves["sampling_offsets"], leaves["attention_logits"], leaves["reference_points"]
    refuse(ValueError, r"reference_points: expected \(B, Q, L, 2 or 4\)", reference_points=reference[..., :1])
    refuse(ValueError, r"reference_points: .*\(2, 5, 3, 2 or 4\), got", reference_points=reference[:, :4])
    refuse(ValueError, "reference_points: expected 4 dimensions", reference_points=reference[0])
    refuse(ValueError, "sampling_offsets: expected 6 dimensions", sampling_offsets=offsets[0])
    refuse(ValueError, "sampling_offsets: expected", sampling_offsets=offsets[..., :1])
    refuse(ValueError, "sampling_offsets: expected", spatial_shapes=CASE.sizes[:2], value=leaves["value"][:, :42])
    refuse(ValueError, "attention_logits: expected", attention_logits=logits[..., :2])
    refuse(ValueError, "value: expected .* S = 43", value=leaves["value"][:, :42])
    refuse(ValueError, "sampling_offsets: expected device", sampling_offsets=offsets.to("meta"))
    refuse(ValueError, "reference_points: expected device", reference_points=reference.to("meta"))
    refuse(ValueError, "attention_logits: expected device", attention_logits=logits.to("meta"))
    refuse(TypeError, "attention_logits: expected a tensor", attention_logits=None)
    refuse(TypeError, "sampling_offsets: expected dtype", sampling_offsets=offsets.long())
    refuse(TypeError, "reference_points: expected dtype", reference_points=reference.long())
    refuse(TypeError, "value: expected a tensor", value=[1.0])
    refuse(TypeError, "spatial_shapes: expected", spatial_shapes=3)
    boxes = {"reference_points": reference.repeat(1, 1, 1, 2), "attention_logits": logits[..., :0]}
    refuse(ValueError, "sampling_offsets: expected at least one point", sampling_offsets=offsets[..., :0, :], **boxes)


@pytest.mark.gpu
@pytest.mark.parametrize("coordinates", [2, 4])
def test_nothing_waits_for_the_gpu(coordinates):
    """Nor copies from the host: the layer's calls can be captured as a graph."""
    leaves = {name: leaf.detach().cuda() for name, leaf in make(CASE, coordinates).items()}
    expected = deformable_attention_from_offsets(spatial_shapes=CASE.sizes, **leaves)
    torch.cuda.set_sync_debug_mode("error")
    try:
        deformable_attention_from_offsets(spatial_shapes=CASE.sizes, **leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = deformable_attention_from_offsets(spatial_shapes=CASE.sizes, **leaves)
    graph.replay()
    assert torch.equal(out, expected)
