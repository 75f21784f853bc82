"""CUDA deformable attention beyond the suite that every backend runs: alignment, tiles, thread orders, limits."""

import math

import pytest
import torch
from backends import DEVICES, DTYPES, dtype_name
from deformable_attention_cases import Case, assert_matches_float64, make, run

from container_kernels import _extension, deformable_attention
from container_kernels.testing import emulate_cuda

DEVICE = DEVICES["cuda"]
# By this parameter the kernels run on the processor, where they cannot on a GPU (conftest.py).
pytestmark = pytest.mark.parametrize("backend", ["cuda"])


@pytest.mark.parametrize("padding", [0, 8, 1], ids=["packed", "padded", "odd"])
@pytest.mark.parametrize("head_dim", [8, 16, 24, 32, 40, 64])
@pytest.mark.parametrize("dtype", DTYPES["cuda"], ids=dtype_name)
def test_strides_decide_the_access_alone(backend, dtype, head_dim, padding):
    """16 bytes or an element at a time, the same sums in the same order."""
    case = Case(2, ((5, 4), (2, 3)), 9, 2, head_dim, 2)
    leaves = make(case, dtype, DEVICE, torch.float32)
    expected, expected_grads = run(deformable_attention, case, leaves, backend=backend)
    value = leaves["value"].detach()
    padded = torch.full((*value.shape[:3], head_dim + padding), math.nan, dtype=dtype, device=DEVICE)
    padded[..., :head_dim] = value
    given = {**leaves, "value": padded[..., :head_dim].requires_grad_()}
    out, grads = run(deformable_attention, case, given, backend=backend)
    assert torch.equal(out, expected)
    assert torch.equal(grads["value"], expected_grads["value"])
    for name in ("sampling_locations", "attention_weights"):
        torch.testing.assert_close(grads[name], expected_grads[name], rtol=1e-4, atol=1e-4)
    assert_matches_float64(case, given, backend)


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES["cuda"], ids=dtype_name)
def test_addresses_decide_the_access_alone(backend, dtype, offset):
    """All tensors begin so many elements behind a multiple of 16 bytes; locations then also between x and y."""
    case = Case(1, ((5, 4), (2, 3)), 9, 2, 32, 2)

    def moved(tensor):
        memory = tensor.new_full((offset + tensor.numel(),), math.nan)
        return memory[offset:].view(tensor.shape).copy_(tensor).detach()

    leaves = make(case, dtype, DEVICE, torch.float32)
    grad_out = torch.randn(1, 9, 2, 32, device=DEVICE).to(dtype)
    given = {name: moved(leaf.detach()).requires_grad_() for name, leaf in leaves.items()}
    expected, expected_grads = run(deformable_attention, case, leaves, grad_out, backend=backend)
    out, grads = run(deformable_attention, case, given, moved(grad_out), backend=backend)
    assert torch.equal(out, expected)
    assert torch.equal(grads["value"], expected_grads["value"])
    for name in ("sampling_locations", "attention_weights"):
        torch.testing.assert_close(grads[name], expected_grads[name], rtol=1e-4, atol=1e-4)


TILES = {
    "sides that are no multiple of a tile's": Case(1, ((9, 17), (8, 16), (7, 1), (1, 25)), 40, 2, 8, 3),
    "two groups of channels, the last one short": Case(1, ((9, 3),), 20, 2, 35, 2),
    "eight groups of channels": Case(1, ((3, 9),), 7, 1, 256, 2),
    "warps that share a tile, fewer query blocks than warps": Case(2, ((3, 5), (30, 30)), 140, 1, 8, 16),
    "all warps of a block share a tile": Case(1, ((4, 4), (2, 9)), 1100, 1, 4, 5),
    "more boxes than lanes": Case(1, ((2, 2), (40, 40)), 1100, 1, 4, 1),
}


@pytest.mark.parametrize("case", TILES.values(), ids=TILES.keys())
def test_tiles(backend, case):
    assert_matches_float64(case, make(case, torch.float32, DEVICE), backend, factor=3.0)


def test_queries_in_the_order_of_pixels(backend):
    """As an encoder has them: most boxes miss most tiles."""
    case = Case(1, ((20, 30),), 600, 1, 8, 2)
    leaves = make(case, torch.float32, DEVICE)
    row, column = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    centres = torch.stack([(column + 0.5) / 30, (row + 0.5) / 20], -1).view(1, 600, 1, 1, 1, 2)
    # Pixels and three tenths, so that no location is a pixel's centre.
    offsets = torch.randint(-3, 4, (1, 600, 1, 1, 2, 2)) + 0.3
    locations = centres + offsets / torch.tensor([30.0, 20.0])
    leaves["sampling_locations"] = locations.to(DEVICE).requires_grad_()
    assert_matches_float64(case, leaves, backend, factor=3.0)


@pytest.mark.skipif(DEVICE != "cpu", reason="the order of threads is the emulator's")
@pytest.mark.parametrize("dtype", DTYPES["cuda"], ids=dtype_name)
@pytest.mark.parametrize(
    "case", [Case(2, ((9, 10), (2, 3)), 150, 2, 20, 4), Case(1, ((3, 3),), 600, 1, 40, 3)], ids=str
)
def test_any_thread_order_gives_the_same_bits(backend, case, dtype):
    leaves = make(case, dtype, DEVICE, torch.float32)
    results = []
    for order in ("ascending", "descending"):
        with emulate_cuda(order=order):
            results.append(run(deformable_attention, case, leaves, backend=backend))
    (out, grads), (other_out, other_grads) = results
    assert torch.equal(out, other_out)
    assert all(torch.equal(grads[name], other_grads[name]) for name in grads)


def test_most_levels(backend):
    case = Case(1, tuple((1 + i % 3, 2) for i in range(16)), 5, 1, 8, 1)
    assert_matches_float64(case, make(case, torch.float32, DEVICE), backend)
    case = case._replace(sizes=(*case.sizes, (1, 1)))
    leaves = make(case, torch.float32, DEVICE)
    with pytest.raises(RuntimeError, match="'cuda' cannot serve this call: it takes up to 16 levels, got 17"):
        run(deformable_attention, case, leaves, backend=backend)


def test_more_blocks_than_a_grid_has_in_its_other_axes(backend):
    """The gradient of value has its blocks along the same axis, too many of them for the processor."""
    case = Case(1, ((1, 1),), 1, 66000, 1, 1)
    leaves = {name: leaf.detach() for name, leaf in make(case, torch.float32, DEVICE).items()}
    results = []
    for name in (backend, "reference"):
        weights = leaves["attention_weights"].clone().requires_grad_()
        given = {**leaves, "attention_weights": weights}
        out = deformable_attention(spatial_shapes=case.sizes, **given, backend=name)
        results.append((out, *torch.autograd.grad(out, [weights], torch.ones_like(out))))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_locations_between_x_and_y_are_refused(backend):
    """By the kernels; a call of the op copies such locations."""
    module, index = (
        _extension.load_cuda_emulator() if DEVICE == "cpu" else _extension.cuda,
        -1 if DEVICE == "cpu" else 0,
    )
    with pytest.raises(ValueError, match="sampling_locations: expected an address that is a multiple of 8 bytes"):
        module.deformable_attention_forward(0, index, 0, (1, 1, 1, 1, 8, 1), [1, 1], 16, (8, 8, 8, 1), 4, 16, 16)
