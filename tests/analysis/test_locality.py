"""Mean distances, by hand and in chunks."""

import math

import pytest
import torch
from random_layers import random_input, random_layer

from container_kernels import ContextAggregation
from container_kernels.analysis import LayerAffinities, locality, mean_distances, uniform_distance


def dense_affinities(matrix: torch.Tensor, grid_size, prefix: int = 0) -> LayerAffinities:
    """Of a layer whose heads all have `matrix`."""
    layer = ContextAggregation(
        4, 2, dynamic=False, static="dense", grid_size=grid_size, num_prefix_tokens=prefix, dtype=torch.float64
    )
    layer.affinity.data = matrix.double().expand(2, -1, -1)
    size = (len(matrix), 1) if prefix else grid_size
    return LayerAffinities(layer, torch.randn(1, 4, *size, dtype=torch.float64))


def test_the_identity_reaches_nowhere():
    distances = mean_distances(dense_affinities(torch.eye(12), (3, 4)))
    assert distances["mixed"].tolist() == [0, 0]


def test_a_uniform_affinity_reaches_the_mean_of_all_pairs():
    # On 1×3: distances 0 1 2, 1 0 1, 2 1 0. On 2×2: each token has itself, two neighbors and the diagonal.
    assert uniform_distance((1, 3)) == pytest.approx(8 / 9)
    assert uniform_distance((2, 2), (3.0, 4.0)) == pytest.approx((0 + 3 + 4 + 5) / 4)
    for grid in ((1, 3), (2, 2), (3, 4)):
        distances = mean_distances(dense_affinities(torch.ones(math.prod(grid), math.prod(grid)), grid), (3.0, 4.0))
        assert distances["static"].tolist() == pytest.approx([uniform_distance(grid, (3.0, 4.0))] * 2)


def test_a_shift_by_one_column_reaches_one_column():
    # Tokens of the last column have no right neighbor, so no weight at all: they do not count.
    shift = torch.eye(12).roll(1, dims=1)
    shift[3::4] = 0
    assert mean_distances(dense_affinities(shift, (3, 4)), (8.0, 16.0))["static"].tolist() == [16.0, 16.0]


def test_signs_do_not_matter_and_no_weight_is_no_distance():
    matrix = torch.randn(12, 12)
    torch.testing.assert_close(
        *(mean_distances(dense_affinities(m, (3, 4)))["static"] for m in (matrix, matrix.abs())), rtol=0, atol=0
    )
    assert mean_distances(dense_affinities(torch.zeros(12, 12), (3, 4)))["static"].isnan().all()


def test_prefix_tokens_are_left_out():
    matrix = torch.rand(13, 13)
    distances = mean_distances(dense_affinities(matrix, (3, 4), prefix=1))
    assert torch.equal(distances["static"], mean_distances(dense_affinities(matrix[1:, 1:], (3, 4)))["static"])


def test_a_filter_reaches_as_far_as_its_taps():
    """Filters of a head count together: one tap beside the center against one in it."""
    layer = random_layer(dynamic=False, kernel_size=3)
    layer.local_weight.data.zero_()
    layer.local_weight.data[:, 1, 1] = 1
    layer.local_weight.data[0, 0, 1] = -3  # one of the first head's four channels looks one row up as well
    distances = mean_distances(LayerAffinities(layer, random_input(layer)), (2.0, 5.0))
    # Weights 4 and 3 at distances 0 and 2; the first of four rows has nothing above.
    assert distances["static"].tolist() == pytest.approx([3 / 4 * 2 * 3 / 7, 0, 0])


@pytest.mark.parametrize("dynamic", [False, True])
def test_channels_of_opposite_sign_do_not_cancel(dynamic):
    layer = random_layer(dynamic=dynamic, kernel_size=3)
    layer.local_weight.data.zero_()
    layer.local_weight.data[0, 1, 2] = 1  # two channels of the first head look one column to the right
    layer.local_weight.data[1, 1, 2] = -1
    first, *others = mean_distances(LayerAffinities(layer, random_input(layer)), (2.0, 5.0))["static"].tolist()
    assert first == 5.0 and all(math.isnan(distance) for distance in others)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])  # 7 is wider than the grid
def test_a_filter_alone_reaches_as_far_as_its_rows(kernel_size):
    layer = random_layer(dynamic=False, kernel_size=kernel_size)
    affinities = LayerAffinities(layer, random_input(layer))
    row, column = (torch.arange(20) // 5).double(), (torch.arange(20) % 5).double()
    apart = torch.hypot(2 * (row[:, None] - row), 7 * (column[:, None] - column))
    weight = affinities.rows(torch.arange(20))["static"][0].abs().sum(1)  # (M, N, N)
    expected = ((weight * apart).sum(-1) / weight.sum(-1)).mean(-1)
    distances = mean_distances(affinities, (2.0, 7.0))
    assert distances.keys() == {"static", "mixed"}
    for distance in distances.values():
        torch.testing.assert_close(distance, expected, rtol=1e-12, atol=0)


def test_a_filter_alone_writes_no_row(monkeypatch):
    """On a large grid there is no time, and no memory, for N rows of N tokens."""
    layer = random_layer(dynamic=False)
    affinities = LayerAffinities(layer, torch.randn(1, 12, 128, 128, dtype=torch.float64))
    monkeypatch.setattr(LayerAffinities, "rows", None)
    assert 1 < mean_distances(affinities)["mixed"].min() < 2.9  # of a 5×5 window


@pytest.mark.parametrize(
    ("dynamic", "static"), [(True, "local"), (True, "dense"), (True, "both"), (True, None), (False, "both")]
)
def test_chunks_make_no_difference(dynamic, static, monkeypatch):
    layer = random_layer(dynamic, static)
    affinities = LayerAffinities(layer, random_input(layer))
    whole = mean_distances(affinities)
    assert whole.keys() == {"mixed"} | ({"dynamic"} if dynamic else set()) | ({"static"} if static else set())
    monkeypatch.setattr(locality, "_CHUNK", 3 * affinities.elements_per_row)  # the last chunk has two of the 20 rows
    for name, distance in mean_distances(affinities).items():
        assert distance.shape == (3,)
        torch.testing.assert_close(distance, whole[name], rtol=1e-12, atol=0)


def test_images_are_averaged():
    layer = random_layer()
    x = random_input(layer)
    both, *single = (mean_distances(LayerAffinities(layer, images))["mixed"] for images in (x, x[:1], x[1:]))
    torch.testing.assert_close(both, sum(single) / 2)
