"""A dense affinity on another grid: resize the values to the grid it was learned on, mix there, resize the result."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from container_kernels import ContainerBlock, ContextAggregation
from container_kernels.modules import resize_affinity

GRIDS = [((4, 5), (8, 10)), ((4, 5), (3, 7)), ((6, 6), (2, 3)), ((1, 4), (3, 3))]
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def resized(tokens, old, new, prefix=0):
    """(…, P + H·W, C) of one grid on another, by PyTorch's own resizing of images."""
    image = tokens[:, prefix:].transpose(1, 2).unflatten(2, old)
    image = F.interpolate(image, new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([tokens[:, :prefix], image.flatten(2).transpose(1, 2)], 1)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_is_resizing_mixing_and_resizing_back(old, new, prefix):
    affinity = torch.randn(3, *[prefix + old[0] * old[1]] * 2, dtype=torch.float64)
    values = torch.randn(3, prefix + new[0] * new[1], 4, dtype=torch.float64)
    expected = resized(affinity @ resized(values, new, old, prefix), old, new, prefix)
    torch.testing.assert_close(resize_affinity(affinity, old, new, prefix) @ values, expected, **EXACT)


def test_the_same_grid_is_the_same_affinity():
    affinity = torch.randn(2, 21, 21)
    assert resize_affinity(affinity, (4, 5), (4, 5), 1) is affinity


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_constant_values_are_answered_as_before(old, new):
    """Row sums belong to the queries: those of the new grid are those of the old one, resized."""
    sums = torch.randn(old[0] * old[1], dtype=torch.float64)
    affinity = torch.randn(1, len(sums), len(sums), dtype=torch.float64)
    affinity += ((sums - affinity.sum(-1)) / len(sums))[..., None]
    expected = resized(sums[None, :, None], old, new).flatten()
    torch.testing.assert_close(resize_affinity(affinity, old, new)[0].sum(-1), expected, **EXACT)
    uniform = torch.full_like(affinity, 1 / len(sums))
    n = new[0] * new[1]
    torch.testing.assert_close(
        resize_affinity(uniform, old, new).sum(-1), torch.ones(1, n, dtype=torch.float64), **EXACT
    )


def test_class_tokens_keep_their_place():
    affinity = torch.randn(2, 1 + 16, 1 + 16, dtype=torch.float64)
    larger = resize_affinity(affinity, (4, 4), (8, 8), 1)
    assert larger.shape == (2, 65, 65)
    torch.testing.assert_close(larger[:, 0, 0], affinity[:, 0, 0])
    # what the class token takes from the whole image stays; each pixel's share becomes smaller
    torch.testing.assert_close(larger[:, 0, 1:].sum(-1), affinity[:, 0, 1:].sum(-1))
    # what each pixel takes from the class token is resized like an image
    expected = resized(affinity[:, 1:, :1], (4, 4), (8, 8))
    torch.testing.assert_close(larger[:, 1:, :1], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dtype_and_device_stay(dtype):
    larger = resize_affinity(torch.randn(2, 4, 4, dtype=dtype), (2, 2), (3, 3))
    assert larger.dtype == dtype and larger.is_contiguous()


def test_an_affinity_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"affinity: expected \(M, 21, 21\) for \(4, 5\), got \(2, 20, 20\)"):
        resize_affinity(torch.ones(2, 20, 20), (4, 5), (2, 2), 1)


SETTINGS = {
    "dense": {"dynamic": False},
    "mix": {},
    "both": {"static": "both"},
    "token mlp": {"dynamic": False, "hidden_tokens": 6},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_layer_takes_another_grid(setting):
    """On values that resizing there and back keeps (constant ones), the static answer is the resized old answer."""
    layer = ContextAggregation(8, 2, **{"static": "dense", "grid_size": (4, 4), **SETTINGS[setting]}).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    constant = torch.randn(2, 8, 1, 1, dtype=torch.float64)
    before = layer(constant.expand(2, 8, 4, 4))
    layer.set_grid_size((8, 8))
    assert layer.grid_size == (8, 8)
    after = layer(constant.expand(2, 8, 8, 8))
    if setting != "both":  # a window at the border sees another part of a larger image
        expected = F.interpolate(before, (8, 8), mode="bicubic", antialias=True)
        torch.testing.assert_close(after, expected, **EXACT)
    after.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    with pytest.raises(ValueError, match=r"x: expected H, W = \(8, 8\)"):
        layer(constant.expand(2, 8, 4, 4))


def test_a_layer_without_a_dense_affinity_stays_as_it_is():
    layer = ContextAggregation(8, 2)
    parameters = list(layer.parameters())
    layer.set_grid_size((5, 5))
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True)) and layer.grid_size is None


def test_frozen_affinities_stay_frozen():
    for settings in ({}, {"hidden_tokens": 3}):
        layer = ContextAggregation(8, 2, dynamic=False, static="dense", grid_size=(2, 2), **settings)
        layer.requires_grad_(False).set_grid_size((3, 3))
        assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_parametrized_layers_are_refused():
    for settings, path in (({}, ""), ({"hidden_tokens": 3}, "token_mlp")):
        layer = ContextAggregation(8, 2, dynamic=False, static="dense", grid_size=(2, 2), **settings)
        parametrize.register_parametrization(layer.get_submodule(path), "w1" if path else "affinity", nn.Identity())
        with pytest.raises(RuntimeError, match="set_grid_size: the layer is parametrized"):
            layer.set_grid_size((3, 3))


def test_bad_grid():
    with pytest.raises(ValueError, match=r"new_grid: expected \(H, W\), two integers of at least 1, got \(0, 2\)"):
        resize_affinity(torch.ones(2, 4, 4), (2, 2), (0, 2))
    layer = ContextAggregation(8, 2, static="dense", grid_size=(2, 2))
    with pytest.raises(ValueError, match=r"grid_size: expected \(H, W\), two integers of at least 1, got \(2, 0\)"):
        layer.set_grid_size((2, 0))


@pytest.mark.parametrize("settings", [{}, {"hidden_tokens": 5}], ids=["affinity", "token mlp"])
def test_blocks_fuse_with_columns_and_token_mlps(settings):
    """What has no constants to fold is called as it is."""
    kind = {"dynamic": False} if settings else {"num_prefix_tokens": 1}
    block = ContainerBlock(8, 2, static="dense", grid_size=(3, 3), pos_embed=False, **kind, **settings).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64) if settings else torch.randn(2, 8, 10, 1, dtype=torch.float64)
    expected = block(x)
    torch.testing.assert_close(block.fuse()(x), expected, **EXACT)
