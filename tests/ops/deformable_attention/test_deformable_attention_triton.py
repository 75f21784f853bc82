"""Deformable attention in Triton: tiles at borders of levels, boxes that pass blocks over, what is compiled anew."""

import math

import pytest
import torch
from backends import DEVICES, dtype_name
from deformable_attention_cases import Case, assert_matches_float64, make, run

from container_kernels import deformable_attention
from container_kernels.testing import poisoned_outputs

pytest.importorskip("triton")
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import jit

from container_kernels.ops.deformable_attention import triton as backend
from container_kernels.ops.deformable_attention.triton import config as configs

DEVICE = DEVICES["triton"]
BACKENDS = pytest.mark.parametrize("name", ["triton"])
ROWS, COLUMNS = configs.VALUE[16][0][:2]


@BACKENDS
@pytest.mark.parametrize(
    "sizes",
    [
        ((ROWS, COLUMNS), (ROWS + 1, COLUMNS + 1)),
        ((2 * ROWS, COLUMNS - 1), (1, 1)),
        ((1, 2 * COLUMNS + 1),),
    ],
    ids=str,
)
def test_tiles_at_the_borders_of_levels(name, sizes):
    case = Case(2, sizes, 40, 1, 4, 2)
    assert_matches_float64(case, make(case, torch.float32, DEVICE), name)


@BACKENDS
def test_more_boxes_than_one_word_has_bits(name):
    """All blocks meet the one tile: every bit of a word, and a word that is not full."""
    case = Case(1, ((2, 3),), 32 * configs.BLOCK_Q + 37, 1, 1, 1)
    leaves = make(case, torch.float32, DEVICE)
    grad_out = torch.randn(1, case.queries, 1, 1, device=DEVICE)
    _, grads = run(deformable_attention, case, leaves, grad_out, backend=name)
    _, expected = run(deformable_attention, case, leaves, grad_out, backend="reference")
    torch.testing.assert_close(grads["value"], expected["value"], rtol=1e-4, atol=1e-4)


@BACKENDS
@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True)], ids=["", "across", "along"])
@pytest.mark.parametrize("point", [(ROWS - 0.5, COLUMNS - 0.5), (ROWS - 1, COLUMNS - 0.5), (ROWS - 0.8, 0.2)], ids=str)
def test_a_single_point_between_tiles(name, point, mirrored):
    """At the last row of one tile it gives weight to the first row of the next, so its box meets both."""
    case = Case(1, ((2 * ROWS, 2 * COLUMNS),), 1, 1, 4, 1)
    leaves = make(case, torch.float32, DEVICE)
    row, column = point
    place = torch.tensor([(column + 0.5) / (2 * COLUMNS), (row + 0.5) / (2 * ROWS)], device=DEVICE)
    place = torch.where(torch.tensor(mirrored, device=DEVICE), 1 - place, place)
    leaves["sampling_locations"] = place.view(1, 1, 1, 1, 1, 2).requires_grad_()
    assert_matches_float64(case, leaves, name)


def test_unit_of_an_address():
    """Loads are as wide as the address allows: a view one element further on has none wider than one."""
    tensor = torch.randn(2 * 6 * 2 * 8 + 1, device=DEVICE)
    assert backend.unit_of(tensor[:-1].view(2, 6, 2, 8)) == 4
    assert backend.unit_of(tensor[1:].view(2, 6, 2, 8)) == 1


def on_two_sides() -> tuple[Case, dict]:
    """Two blocks of queries, the first left and the second right on a map of four tiles, and a few points outside."""
    case = Case(1, ((ROWS, 4 * COLUMNS),), 2 * configs.BLOCK_Q, 1, 8, 2)
    leaves = make(case, torch.float32, DEVICE)
    x = torch.rand(case.queries, 2, device=DEVICE) * 0.2 + 0.02
    x[configs.BLOCK_Q :] += 0.75
    x[::7, 1] = torch.tensor([1e20, -1e20, math.inf, math.nan, -3.0], device=DEVICE).repeat(2)
    locations = torch.stack([x, torch.rand_like(x) * 0.8 + 0.1], dim=-1)
    leaves["sampling_locations"] = locations.view(1, case.queries, 1, 1, 2, 2).requires_grad_()
    return case, leaves


@BACKENDS
@pytest.mark.parametrize("side", ["left", "right"])
def test_blocks_that_sample_elsewhere_are_passed_over(name, side):
    """A grad_out of NaN would show in every tile that its block is multiplied for."""
    case, leaves = on_two_sides()
    grad_out = torch.randn(1, case.queries, 1, 8, device=DEVICE)
    expected = run(deformable_attention, case, leaves, grad_out, backend=name)[1]["value"]
    reference = run(deformable_attention, case, leaves, grad_out, backend="reference")[1]["value"]
    torch.testing.assert_close(expected, reference, rtol=1e-5, atol=1e-5)
    first = 0 if side == "left" else configs.BLOCK_Q
    grad_out[:, first : first + configs.BLOCK_Q] = math.nan
    with poisoned_outputs():
        grad = run(deformable_attention, case, leaves, grad_out, backend=name)[1]["value"]
    grad, expected = (tensor.view(ROWS, 2, 2 * COLUMNS, 8) for tensor in (grad, expected))
    poisoned, clean = (0, 1) if side == "left" else (1, 0)
    assert torch.equal(grad[:, clean], expected[:, clean])
    assert grad[:, poisoned].isnan().any()


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_16_bits_round_the_gradient_of_value_once(name, dtype):
    """Queries in pairs that all but cancel: what is left is exact to its own rounding, not to that of large terms."""
    case = Case(1, ((2, 3),), 100, 1, 4, 2)
    leaves = make(case, dtype, DEVICE, torch.float32)
    scale = 1e5 if dtype == torch.float16 else 1  # no float16 is so large
    locations, weights = leaves["sampling_locations"].detach(), leaves["attention_weights"].detach() * scale
    grad_out = torch.randn(1, 100, 1, 4).to(DEVICE, dtype)
    grad_out *= 1e-3 if dtype == torch.float16 else 1
    locations[:, 1::2], weights[:, 1::2], grad_out[:, 1::2] = (
        locations[:, ::2],
        weights[:, ::2] * (1 + 2**-10),
        -grad_out[:, ::2].to(torch.bfloat16).to(dtype),  # of 16 bits: the last digits of float16 are left
    )

    def gradient(weights, grad_out, name):
        value = leaves["value"].to(grad_out.dtype)
        given = {"value": value, "sampling_locations": locations, "attention_weights": weights}
        given = {key: leaf.detach().requires_grad_() for key, leaf in given.items()}
        return run(deformable_attention, case, given, grad_out, backend=name)[1]["value"].double()

    grad = gradient(weights, grad_out, name)
    locations = locations.double()
    exact = gradient(weights.double(), grad_out.double(), "reference")
    terms = gradient(weights.double(), grad_out.double().abs(), "reference")
    # One rounding to nearest, and 2^-16 of the terms for what two parts of 8 bits leave out.
    assert ((grad - exact).abs() <= exact.abs() * torch.finfo(dtype).eps / 2 + terms * 2**-16).all()


@BACKENDS
@pytest.mark.parametrize("tile", dict.fromkeys(tile for tiles in configs.VALUE.values() for tile in tiles), ids=str)
def test_every_tile_of_pixels(name, tile, monkeypatch):
    monkeypatch.setattr(configs, "value_config", lambda _: (configs.ValueConfig(*tile),))
    case = Case(1, ((5, 17),), 9, 1, 4, 1)
    assert_matches_float64(case, make(case, torch.float32, DEVICE), name)


@BACKENDS
@pytest.mark.parametrize("block_q", [1, 2, 64])
def test_every_block_of_queries(name, block_q, monkeypatch):
    monkeypatch.setattr(configs, "sampling_config", lambda *_: (configs.SamplingConfig(block_q, 1),))
    case = Case(1, ((3, 4),), 5, 2, 4, 1)
    assert_matches_float64(case, make(case, torch.float32, DEVICE), name)


@pytest.mark.parametrize(
    ("points", "step", "places"), [(1, 1, 1), (3, 3, 4), (4, 4, 4), (5, 3, 4), (8, 4, 4), (9, 3, 4)]
)
def test_steps(points, step, places):
    assert (configs.step(points), configs.places(points)) == (step, places)


@pytest.mark.parametrize("head_dim", [1, 3, 8, 32, 33, 256])
@pytest.mark.parametrize("vector", [1, 4, 8])
def test_blocks_of_queries_fit(head_dim, vector):
    for config in configs.sampling_config(head_dim, vector):
        threads = 32 * config.num_warps
        assert 1 <= config.block_q <= threads
        assert config.block_q == 1 or config.block_q * configs.block_d(head_dim) <= threads * max(2, vector)


class Recorder:
    """In the place of a kernel: what it is launched with, as Triton would specialize it."""

    def __init__(self, kernel, seen):
        self.kernel, self.seen = kernel, seen
        # Compiled, a kernel knows its parameters; interpreted, what it was decorated with.
        params = getattr(kernel, "params", None)
        self.general = (
            [param.name for param in params if param.do_not_specialize]
            if params
            else kernel.kwargs["do_not_specialize"] or []
        )
        self.names = getattr(kernel, "arg_names", None)

    def __getattr__(self, name):
        return getattr(self.kernel, name)

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            facts = [
                jit.native_specialize_impl(CUDABackend, argument, False, name not in self.general, True)
                for name, argument in zip(self.names, arguments, strict=False)
            ]
            self.seen.append((self.names[0], facts, constants))
            self.kernel[grid](*arguments, **constants)

        return launch


def compiled_for(case: Case, monkeypatch) -> list:
    """What Triton's cache of kernels would look for, launch by launch."""
    seen = []
    for name in ("forward_kernel", "boxes_kernel", "backward_value_kernel", "backward_sampling_kernel"):
        monkeypatch.setattr(backend, name, Recorder(getattr(backend, name), seen))
    run(deformable_attention, case, make(case, torch.float32, DEVICE), backend="triton")
    monkeypatch.undo()
    return seen


@BACKENDS
@pytest.mark.parametrize(
    ("sizes", "batch", "queries"),
    [(((16, 1), (1, 16)), 1, 1), (((2, 32), (3, 5)), 16, 2), (((7, 5), (17, 3)), 3, 16)],
    ids=str,
)
def test_no_size_is_compiled_anew(name, sizes, batch, queries, monkeypatch):
    """Not one of 1 either, nor a multiple of 16, of images, batches or queries; the layout of value alone is."""
    expected = compiled_for(Case(2, ((3, 2), (2, 2)), 3, 1, 4, 1), monkeypatch)
    assert len(expected) == 4
    assert compiled_for(Case(batch, sizes, queries, 1, 4, 1), monkeypatch) == expected
