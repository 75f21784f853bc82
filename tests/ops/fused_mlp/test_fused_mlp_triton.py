"""What is particular to the Triton MLP and projection: both ways to keep the hidden layer, tiles."""

import pytest
import torch
import torch.nn.functional as F
from fused_mlp_triton_cases import DEVICE, DTYPES, SHAPES, gradient_of, make, run

from container_kernels.ops.fused_mlp import fused_mlp
from container_kernels.ops.projection import projection, projection_with_statistics
from container_kernels.testing import assert_within_budget, eager_fused_mlp, poisoned_outputs

triton = pytest.importorskip("triton")

from container_kernels.ops.fused_mlp import triton as mlp_kernels  # noqa: E402
from container_kernels.ops.fused_mlp.triton import config  # noqa: E402
from container_kernels.ops.fused_mlp.triton.config import ChipConfig  # noqa: E402
from container_kernels.ops.projection.triton import config as product_config  # noqa: E402
from container_kernels.ops.projection.triton.config import ProductConfig  # noqa: E402


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("on_chip", [True, False], ids=["on chip", "in memory"])
def test_both_ways_match_float64(monkeypatch, on_chip, dtype, shape):
    monkeypatch.setattr(config, "on_chip", lambda *_: on_chip)
    residual = shape[2] == shape[4]
    leaves = make(shape, dtype)
    sample_scale = torch.rand(shape[0], device=DEVICE) if residual else None
    exact, exact_grads = run(fused_mlp, leaves, sample_scale, torch.float64, residual=residual, backend="reference")
    eager, eager_grads = run(eager_fused_mlp, leaves, sample_scale, residual=residual)
    with poisoned_outputs():
        out, grads = run(fused_mlp, leaves, sample_scale, residual=residual, backend="triton")
    assert_within_budget("out", out, eager, exact)
    # Of one token they are few numbers.
    summed = {"x": terms_of_the_gradient_of_x(leaves)} if out.shape[:2] == (1, 1) else {}
    for name in exact_grads:
        assert_within_budget(
            f"gradient of {name}", grads[name], eager_grads[name], exact_grads[name], summed=summed.get(name)
        )


def terms_of_the_gradient_of_x(leaves):
    """Of one token, without the residual's, over the hidden units (hidden,): those of the channel with the largest."""
    x, w1, b1, w2, _ = (leaf.detach().double() for leaf in leaves)
    hidden = F.linear(x, w1, b1).requires_grad_()
    (grad_hidden,) = torch.autograd.grad(F.linear(F.gelu(hidden), w2), hidden, gradient_of(x.new_empty(1, 1, len(w2))))
    terms = grad_hidden.reshape(-1, 1) * w1
    return terms[:, terms.norm(dim=0).argmax()]


@pytest.mark.parametrize("on_chip", [True, False], ids=["on chip", "in memory"])
def test_repeats_are_bit_identical(monkeypatch, on_chip):
    monkeypatch.setattr(config, "on_chip", lambda *_: on_chip)
    leaves = make(SHAPES[0], torch.bfloat16)
    scale = torch.rand(SHAPES[0][0], device=DEVICE)
    first, first_grads = run(fused_mlp, leaves, scale, residual=True, backend="triton")
    again, grads = run(fused_mlp, leaves, scale, residual=True, backend="triton")
    assert torch.equal(first, again)
    assert all(torch.equal(grads[name], first_grads[name]) for name in grads)


def test_views_at_odd_offsets_reach_kernels_aligned(monkeypatch):
    """A kernel compiled for addresses that are no multiple of 16 bytes has no wide loads, and spills."""
    leaves = make((2, 37, 16, 40, 16), torch.bfloat16)
    views = [torch.cat([t.detach().flatten()[:1], t.detach().flatten()])[1:].view_as(t) for t in leaves]
    assert all(t.data_ptr() % 16 for t in views)
    scale = torch.rand(2, device=DEVICE)
    seen = []
    for function in ("forward", "backward"):
        kernels = getattr(mlp_kernels, function)

        def record(inputs, *tensors, kernels=kernels):
            seen.extend(t for t in (*inputs, tensors[0]) if isinstance(t, torch.Tensor))
            kernels(inputs, *tensors)

        monkeypatch.setattr(mlp_kernels, function, record)
    out, grads = run(fused_mlp, leaves, scale, residual=True, backend="triton")
    again, grads_again = run(fused_mlp, views, scale, residual=True, backend="triton")
    assert torch.equal(out, again)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)
    projected = [projection(t[0], t[1], t[2], sample_scale=scale, backend="triton") for t in (leaves, views)]
    assert torch.equal(*projected)
    assert len(seen) == 2 * (7 + 6) and all(t.data_ptr() % 16 == 0 for t in seen)


# The interpreter warns of what no one reads: it overflows in the forward, too, where there is no token.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("on_chip", [True, False], ids=["on chip", "in memory"])
def test_padding_of_tiles_cannot_overflow(monkeypatch, on_chip):
    """The bias alone, which is all of h where there is no token, is beyond float16; with any token it is small."""
    monkeypatch.setattr(config, "on_chip", lambda *_: on_chip)
    x, w1, b1, w2, b2 = (t.detach() for t in make((1, 5, 16, 40, 16), torch.float16))
    leaves = [torch.ones_like(x), torch.full_like(w1, -6000.0), torch.full_like(b1, 96001.0), w2, b2]
    exact, exact_grads = run(fused_mlp, leaves, None, torch.float64, backend="reference")
    with poisoned_outputs():
        out, grads = run(fused_mlp, leaves, None, backend="triton")
    torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=1e-2)
    for name in exact_grads:
        torch.testing.assert_close(grads[name].double(), exact_grads[name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("on_chip", [True, False], ids=["on chip", "in memory"])
def test_a_dropped_sample_is_its_input(monkeypatch, on_chip):
    """Stochastic depth: a branch of scale 0 adds nothing and teaches nothing, whatever finite is in it."""
    monkeypatch.setattr(config, "on_chip", lambda *_: on_chip)
    leaves = make((2, 37, 16, 40, 16), torch.bfloat16)
    scale = torch.tensor([0.0, 2.0], device=DEVICE)
    out, grads = run(fused_mlp, leaves, scale, residual=True, backend="triton")
    assert torch.equal(out[0], leaves[0][0])
    others = leaves[0].detach().clone()
    others[0].normal_()
    _, grads_of_others = run(fused_mlp, [others, *leaves[1:]], scale, residual=True, backend="triton")
    assert all(torch.equal(grads[name], grads_of_others[name]) for name in grads)
    assert grads["w1"].count_nonzero() and grads["w2"].count_nonzero()


@pytest.mark.parametrize("tiles", [ProductConfig(16, 16, 16, 4, 1), ProductConfig(32, 64, 16, 4, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_projection_in_any_tiles(monkeypatch, tiles, dtype):
    """Several tiles of rows, columns and depth, none of which the sizes fill."""
    monkeypatch.setattr(product_config, "product_config", lambda *_: (tiles,))
    x, weight, bias, _, _ = make((3, 23, 37, 70, 1), dtype)
    residual = torch.randn(3, 23, 70, device=DEVICE, dtype=dtype)
    scale = torch.rand(3, device=DEVICE)
    with torch.no_grad(), poisoned_outputs():
        out, channel_sum, square_sum = projection_with_statistics(
            x, weight, bias, residual=residual, sample_scale=scale, backend="triton"
        )
        alone = projection(x, weight, bias, residual=residual, sample_scale=scale, backend="triton")
        exact = projection(
            x.double(), weight.double(), bias, residual=residual.double(), sample_scale=scale, backend="reference"
        )
        eager = F.linear(x, weight, bias.to(dtype)) * scale.to(dtype)[:, None, None] + residual
    assert torch.equal(out, alone)
    assert_within_budget("out", out, eager, exact)
    rows = out.double().flatten(0, 1)
    torch.testing.assert_close(channel_sum.double(), rows.sum(0), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(square_sum.double(), rows.square().sum(0), rtol=1e-5, atol=1e-4)


def test_projection_sums_its_bias_gradient_before_rounding():
    """1 + 2⁻⁹ is no bfloat16: scaled tokens that were rounded to 1 would lose it as often as there are tokens."""
    x, weight, bias, _, _ = make((1, 512, 16, 16, 1), torch.bfloat16)
    scale = torch.full((1,), 1 + 2**-9, device=DEVICE)
    out = projection(x, weight, bias, sample_scale=scale, backend="triton")
    (grad,) = torch.autograd.grad(out, bias, torch.ones_like(out))
    assert (grad == 513).all()


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32")], ids=str
)
def test_tiles_cover_every_problem(dtype, precision):
    for channels in (1, 16, 17, 63, 64, 100, 128, 320, 512):
        for out_channels in (1, 20, 64, 96, 128, 192, 320, 960, 2048):
            problem = (channels, out_channels, dtype, precision)
            candidates = [product_config.product_config(*problem), config.gradient_config(*problem)]
            if config.on_chip(channels, out_channels, dtype):
                candidates += [
                    choose(*problem) for choose in (config.forward_config, config.input_config, config.weight_config)
                ]
            for tiling in (tiling for tilings in candidates for tiling in tilings):
                *blocks, num_warps, _ = vars(tiling).values()
                assert min(blocks) >= 16, tiling
                assert all(size & (size - 1) == 0 for size in (*blocks, num_warps)), tiling
    for rows in (1, 63, 6272, 401408):
        for hidden in (1, 512, 100_000):
            parts = config.num_parts(rows, hidden, ChipConfig(64, 64, 4, 2))
            assert 1 <= parts <= -(-rows // 64)
            assert parts == 1 or parts * -(-hidden // 64) <= config.WANTED_PROGRAMS


def test_columns_of_tiles_are_seldom_padding():
    """Of the networks' widths 196 alone is padded by more than a tenth: it is no near multiple of 16 at all."""
    widths = (64, 128, 192, 196, 256, 320, 384, 512, 768, 960, 1024, 1152, 1280, 1536, 2048, 2304, 3072)
    for width in widths:
        tile = product_config.columns_per_tile(width)
        waste = -(-width // tile) * tile / width - 1
        assert waste <= product_config.MAX_WASTE or width == 196, (width, tile)
        assert tile == 128 or tile == width or -(-width // 128) * 128 / width - 1 > product_config.MAX_WASTE


def test_launch_rules_reach_both_ways():
    """What the tests above force is also what users get: narrow channels on chip, wide ones in memory."""
    assert all(config.on_chip(channels, channels, torch.bfloat16) for channels in (64, 128))
    assert not any(config.on_chip(channels, channels, torch.bfloat16) for channels in (320, 512))
    assert not config.on_chip(64, 320, torch.bfloat16)
    assert config.on_chip(64, 64, torch.float32) and not config.on_chip(128, 128, torch.float32)
