"""Explicit affinities: with them, the layer's equation gives the layer's own output."""

import pytest
import torch
from random_layers import random_input, random_layer

from container_kernels import ContextAggregation
from container_kernels.analysis import LayerAffinities

SETTINGS = [
    pytest.param(dynamic, static, mixing, prefix, id=f"{dynamic=}-{static}-{mixing}-{prefix=}")
    for dynamic in (True, False)
    for static in ("local", "dense", "both", None)
    for mixing in ("gate", "free")
    for prefix in (0, 1)
    if (dynamic or static) and not (prefix and static in ("local", "both"))
]


def aggregate(layer: ContextAggregation, affinities: LayerAffinities, x: torch.Tensor) -> torch.Tensor:
    """W2 concat(A_m V_m + beta · local_bias), with every matrix in memory."""
    values = layer.in_proj(x)[:, -layer.dim :].flatten(2).unflatten(1, (layer.num_heads, layer.head_dim))
    mixed = affinities.rows(torch.arange(affinities.num_tokens))["mixed"]
    y = torch.einsum("bmdij,bmdj->bmdi", mixed.expand(len(x), -1, layer.head_dim, -1, -1), values).flatten(1, 2)
    if layer.local_bias is not None:
        y = y + affinities.beta * layer.local_bias[:, None]
    return layer.out_proj(y.unflatten(2, x.shape[2:]))


@pytest.mark.parametrize(("dynamic", "static", "mixing", "prefix"), SETTINGS)
def test_they_give_the_layers_output(dynamic, static, mixing, prefix):
    layer = random_layer(dynamic, static, mixing, prefix)
    x = random_input(layer)
    affinities = LayerAffinities(layer, x, grid_size=(4, 5))
    torch.testing.assert_close(aggregate(layer, affinities, x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_windows_of_every_size_do(kernel_size):
    layer = random_layer(kernel_size=kernel_size)
    x = random_input(layer)
    torch.testing.assert_close(aggregate(layer, LayerAffinities(layer, x), x), layer(x), rtol=1e-12, atol=1e-12)


def test_without_projections_the_values_are_the_input():
    layer = random_layer(dynamic=False, static="dense", projections=False)
    x = random_input(layer)
    torch.testing.assert_close(aggregate(layer, LayerAffinities(layer, x), x), layer(x), rtol=1e-12, atol=1e-12)


def test_mixed_is_the_weighted_sum_and_rows_are_those_asked_for():
    layer = random_layer(mixing="free", static="both")
    affinities = LayerAffinities(layer, random_input(layer))
    tokens = torch.tensor([7, 0])
    rows, every_row = affinities.rows(tokens), affinities.rows(torch.arange(20))
    assert (affinities.alpha, affinities.beta) == (layer.alpha.item(), layer.beta.item())
    assert rows["dynamic"].shape == (2, 3, 1, 2, 20) and rows["static"].shape == (1, 3, 4, 2, 20)
    assert rows["mixed"].shape == (2, 3, 4, 2, 20) and affinities.elements_per_row == 2 * 3 * 4 * 20
    expected = layer.alpha * rows["dynamic"] + layer.beta * rows["static"]
    torch.testing.assert_close(rows["mixed"], expected, rtol=0, atol=0)
    for name, term in rows.items():
        assert not term.requires_grad
        torch.testing.assert_close(term, every_row[name][..., tokens, :], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(rows["dynamic"].sum(-1), torch.ones(2, 3, 1, 2, dtype=torch.float64))


@pytest.mark.parametrize(("dynamic", "static", "factors"), [(True, None, (1.0, None)), (False, "local", (None, 1.0))])
def test_a_term_alone_is_the_mix(dynamic, static, factors):
    layer = random_layer(dynamic, static)
    affinities = LayerAffinities(layer, random_input(layer))
    alone = "dynamic" if dynamic else "static"
    rows = affinities.rows(torch.arange(20))
    assert rows.keys() == {alone, "mixed"} and rows["mixed"] is rows[alone]
    assert (affinities.alpha, affinities.beta) == factors
    assert affinities.alone == alone and (affinities.filters is None) == dynamic


@pytest.mark.parametrize("static", ["dense", "both"])
def test_a_matrix_is_no_filter(static):
    layer = random_layer(dynamic=False, static=static)
    assert LayerAffinities(layer, random_input(layer)).filters is None


def test_a_filter_is_laid_around_its_token():
    layer = random_layer(dynamic=False, kernel_size=3)
    row = LayerAffinities(layer, random_input(layer)).rows(torch.tensor([5]))["static"]
    grid = row.view(12, 4, 5)  # token 5 is in row 1, at the left border: the window's first column is outside
    assert torch.equal(grid[:, 0:3, 0:2], layer.local_weight[:, :, 1:])
    grid[:, 0:3, 0:2] = 0
    assert not grid.any()


def test_bad_arguments():
    mlp = ContextAggregation(12, 3, dynamic=False, static="dense", grid_size=(4, 5), hidden_tokens=6)
    with pytest.raises(ValueError, match=r"layer: expected one with affinity matrices, got .*hidden_tokens.*GELU"):
        LayerAffinities(mlp, torch.randn(1, 12, 4, 5))
    column = random_layer(static=None, prefix=1)
    x = random_input(column)
    with pytest.raises(ValueError, match=r"grid_size: expected \(H, W\), as prefix tokens hide the grid, got None"):
        LayerAffinities(column, x)
    with pytest.raises(ValueError, match=r"grid_size: expected .* of 20 tokens, as x has 21 .*, got \(4, 4\)"):
        LayerAffinities(column, x, grid_size=(4, 4))
    dense = random_layer(static="dense")
    with pytest.raises(ValueError, match=r"grid_size: expected \(4, 5\), the layer's, or None, got \(5, 4\)"):
        LayerAffinities(dense, random_input(dense), grid_size=(5, 4))
    with pytest.raises(ValueError, match=r"x: expected H, W = \(4, 5\)"):
        LayerAffinities(dense, torch.randn(1, 12, 5, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x: expected \(B, C, H, W\) with C = 12"):
        LayerAffinities(dense, torch.randn(1, 8, 4, 5, dtype=torch.float64))
