"""`MultiScaleDeformableAttention`: where it starts, what it computes, padding, 16 bits, errors."""

import copy

import pytest
import torch

from container_kernels import MultiScaleDeformableAttention
from container_kernels.testing import eager_deformable_attention

SIZES = [(5, 7), (3, 4), (1, 2)]
DIM, HEADS, POINTS = 32, 4, 3


def make_layer(**arguments):
    """Offsets and weights that depend on the query."""
    layer = MultiScaleDeformableAttention(DIM, HEADS, num_levels=3, num_points=POINTS, **arguments)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def make_inputs(coordinates=2, dtype=torch.float32):
    return {
        "query": torch.randn(2, 6, DIM, dtype=dtype),
        "reference_points": torch.rand(2, 6, 3, coordinates, dtype=dtype),
        "value": torch.randn(2, 49, DIM, dtype=dtype),
        "spatial_shapes": SIZES,
    }


def by_hand(layer, query, reference_points, value, spatial_shapes, padding_mask=None, query_pos=None):
    """The original's forward pass, with offsets divided by (W, H) or in units of half a box."""
    x = query if query_pos is None else query + query_pos
    values = layer.value_proj(value)
    if padding_mask is not None:
        values = values.masked_fill(padding_mask[..., None], 0)
    points = (layer.num_heads, layer.num_levels, layer.num_points)
    offsets = layer.sampling_offsets(x).unflatten(-1, (*points, 2))
    weights = layer.attention_weights(x).unflatten(-1, (points[0], -1)).softmax(-1).unflatten(-1, points[1:])
    reference = reference_points[:, :, None, :, None]
    if reference.shape[-1] == 2:
        sides = torch.tensor([(width, height) for height, width in spatial_shapes])
        locations = reference + offsets / sides[:, None]
    else:
        locations = reference[..., :2] + offsets / layer.num_points * reference[..., 2:] * 0.5
    values = values.unflatten(-1, (layer.num_heads, -1))
    return layer.output_proj(eager_deformable_attention(values, spatial_shapes, locations, weights).flatten(2))


def gradients(layer, out):
    return torch.autograd.grad(out, list(layer.parameters()), torch.ones_like(out))


def test_starts_in_eight_directions():
    layer = MultiScaleDeformableAttention()
    bias = layer.sampling_offsets.bias.detach().view(8, 4, 4, 2)
    directions = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)])
    distances = torch.tensor([1, 2, 3, 4])
    expected = directions[:, None, None] * distances[:, None]
    torch.testing.assert_close(bias, expected.expand(8, 4, 4, 2).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 3, 5, 16])
def test_starts_around_for_any_number_of_heads(heads):
    layer = MultiScaleDeformableAttention(heads * 4, heads, num_levels=2, num_points=5)
    bias = layer.sampling_offsets.bias.detach().view(heads, 2, 5, 2)
    assert torch.equal(bias[:, 0], bias[:, 1])
    torch.testing.assert_close(bias.abs().amax(-1), torch.arange(1.0, 6).expand(heads, 2, 5))
    angles = torch.atan2(bias[..., 1], bias[..., 0]).rad2deg() % 360
    expected = (torch.arange(heads) * 360.0 / heads)[:, None, None].expand_as(angles)
    torch.testing.assert_close((angles - expected + 180) % 360 - 180, torch.zeros_like(angles), rtol=0, atol=1e-3)


def test_other_parameters_start_as_in_the_paper():
    layer = MultiScaleDeformableAttention(64, 4)
    for parameter in (layer.sampling_offsets.weight, *layer.attention_weights.parameters()):
        assert not parameter.count_nonzero()
    for projection in (layer.value_proj, layer.output_proj):
        assert not projection.bias.count_nonzero()
        bound = (6 / (64 + 64)) ** 0.5  # Xavier's
        assert 0.95 * bound < projection.weight.abs().max() <= bound


def test_reset_parameters_starts_again():
    layer = make_layer()
    torch.manual_seed(1)
    layer.reset_parameters()
    torch.manual_seed(1)
    fresh = MultiScaleDeformableAttention(DIM, HEADS, num_levels=3, num_points=POINTS, device="meta").to_empty(
        device="cpu"
    )
    fresh.reset_parameters()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, layer.state_dict()[name]), name


def test_names_and_shapes_of_the_original():
    shapes = {name: tuple(tensor.shape) for name, tensor in make_layer().state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (72, 32),
        "sampling_offsets.bias": (72,),
        "attention_weights.weight": (36, 32),
        "attention_weights.bias": (36,),
        "value_proj.weight": (32, 32),
        "value_proj.bias": (32,),
        "output_proj.weight": (32, 32),
        "output_proj.bias": (32,),
    }


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "mask_and_pos"])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_matches_by_hand(coordinates, extras):
    layer, given = make_layer(dtype=torch.float64), make_inputs(coordinates, torch.float64)
    if extras:
        given["query_pos"] = torch.randn(2, 6, DIM, dtype=torch.float64)
        given["padding_mask"] = torch.rand(2, 49) < 0.4
    expected, actual = by_hand(layer, **given), layer(**given)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradients(layer, actual), gradients(layer, expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_matches_transformers(coordinates):
    detr = pytest.importorskip(
        "transformers.models.deformable_detr.modeling_deformable_detr", reason="needs the extra integrations"
    )
    config = detr.DeformableDetrConfig(d_model=DIM, num_feature_levels=3)
    theirs = detr.DeformableDetrMultiscaleDeformableAttention(config, num_heads=HEADS, n_points=POINTS)
    layer, given = make_layer(), make_inputs(coordinates)
    theirs.load_state_dict(layer.state_dict())
    padded, pos = torch.rand(2, 49) < 0.3, torch.randn(2, 6, DIM)
    expected, _ = theirs(
        given["query"],
        attention_mask=~padded,
        encoder_hidden_states=given["value"],
        position_embeddings=pos,
        reference_points=given["reference_points"],
        spatial_shapes=torch.tensor(SIZES),
        spatial_shapes_list=SIZES,
    )
    actual = layer(**given, padding_mask=padded, query_pos=pos)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for ours, of_theirs in zip(gradients(layer, actual), gradients(theirs, expected), strict=True):
        assert (ours - of_theirs).norm() <= 1e-5 * of_theirs.norm()


def test_starts_as_transformers_does():
    detr = pytest.importorskip(
        "transformers.models.deformable_detr.modeling_deformable_detr", reason="needs the extra integrations"
    )
    config = detr.DeformableDetrConfig(d_model=64, encoder_n_points=4)
    theirs = detr.DeformableDetrMultiscaleDeformableAttention(config, num_heads=8, n_points=4)
    detr.DeformableDetrPreTrainedModel._init_weights(detr.DeformableDetrEncoder(config), theirs)
    ours = MultiScaleDeformableAttention(64).sampling_offsets
    torch.testing.assert_close(ours.bias, theirs.sampling_offsets.bias)


def test_padding_counts_as_zero():
    """Whatever it holds, and the bias of the projection with it; the weights are not shared out anew."""
    layer, given = make_layer(), make_inputs()
    padded = torch.zeros(2, 49, dtype=torch.bool)
    padded[0, 20:40] = padded[1, :5] = True
    expected = layer(**given, padding_mask=padded)
    assert not torch.equal(expected, layer(**given))
    given["value"] = given["value"].masked_fill(padded[..., None], 1e4)
    assert torch.equal(layer(**given, padding_mask=padded), expected)
    everything = layer(**given, padding_mask=torch.ones_like(padded))
    torch.testing.assert_close(everything, layer.output_proj.bias.expand_as(everything))


def relative_error(actual, exact):
    return ((actual.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("coordinates", [2, 4])
def test_in_16_bits_locations_stay_exact(coordinates):
    """On a map of 100 × 167; with reference points in bfloat16 the same layer is far off."""
    layer = MultiScaleDeformableAttention(DIM, HEADS, num_levels=1, num_points=4)
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.2)
    torch.nn.init.normal_(layer.attention_weights.weight, std=0.2)
    # Offsets from a box are in units of it, and so are their errors: these are up to a seventh of the map.
    boxes = torch.rand(1, 200, 1, coordinates - 2) * 0.1 + 0.04
    given = {
        "query": torch.randn(1, 200, DIM),
        "reference_points": torch.cat([torch.rand(1, 200, 1, 2) * 0.8 + 0.1, boxes], -1),
        "value": torch.randn(1, 16700, DIM),
        "spatial_shapes": [(100, 167)],
    }
    double = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    exact = by_hand(copy.deepcopy(layer).double(), **double)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(**given)
    assert out.dtype == torch.bfloat16 and relative_error(out, exact) < 0.02

    half = copy.deepcopy(layer).bfloat16()
    low = {**given, "query": given["query"].bfloat16(), "value": given["value"].bfloat16()}
    assert relative_error(half(**low), exact) < 0.03  # weights and the query are rounded as well
    low["reference_points"] = given["reference_points"].bfloat16()
    assert relative_error(half(**low), exact) > 0.05


def test_compiles_whole(fresh_compiler):
    layer, given = make_layer(), make_inputs()
    given["padding_mask"] = torch.rand(2, 49) < 0.3
    expected = layer(**given)
    actual = torch.compile(layer, fullgraph=True, backend="aot_eager")(**given)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(layer, actual), gradients(layer, expected), rtol=1e-4, atol=1e-4)


def test_shapes_as_a_tensor():
    layer, given = make_layer(), make_inputs()
    expected = layer(**given)
    assert torch.equal(layer(**{**given, "spatial_shapes": torch.tensor(SIZES)}), expected)


def test_empty():
    layer, given = make_layer(), make_inputs()
    no_queries = {**given, "query": given["query"][:, :0], "reference_points": given["reference_points"][:, :0]}
    assert layer(**no_queries).shape == (2, 0, DIM)
    no_images = {name: x[:0] if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    assert layer(**no_images).shape == (0, 6, DIM)


def test_device_dtype_and_repr():
    layer = MultiScaleDeformableAttention(16, 2, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in layer.parameters())
    assert layer.extra_repr() == "16, num_heads=2, num_levels=4, num_points=4"


@pytest.mark.parametrize("name", ["embed_dim", "num_heads", "num_levels", "num_points"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_bad_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected a positive integer, got {value!r}"):
        MultiScaleDeformableAttention(**{name: value})


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="num_heads: expected a divisor of embed_dim = 256, got 7"):
        MultiScaleDeformableAttention(256, 7)
    layer, given = make_layer(), make_inputs()

    def refuse(error, match, **changes):
        with pytest.raises(error, match=match):
            layer(**{**given, **changes})

    query, reference, value = given["query"], given["reference_points"], given["value"]
    refuse(ValueError, r"query: expected \(B, Q, C\) with C = 32, got \(2, 6, 31\)", query=query[..., 1:])
    refuse(ValueError, "query: expected 3 dimensions", query=query[0])
    refuse(TypeError, "query: expected a tensor", query=None)
    refuse(ValueError, r"value: expected \(B, S, C\) = \(2, 49, 32\), .*got \(2, 48, 32\)", value=value[:, 1:])
    refuse(ValueError, "value: expected", value=value[:1])
    refuse(ValueError, "value: expected", value=value[..., 1:])
    refuse(ValueError, "value: expected device", value=value.to("meta"))
    refuse(
        ValueError, r"reference_points: expected .*2 or 4\), got \(2, 6, 3, 1\)", reference_points=reference[..., :1]
    )
    refuse(ValueError, "reference_points: expected", reference_points=reference[:, :, :2])
    refuse(ValueError, "spatial_shapes: expected num_levels = 3 levels, got", spatial_shapes=SIZES[:2])
    refuse(TypeError, "spatial_shapes: expected", spatial_shapes=None)
    refuse(ValueError, "query_pos: expected", query_pos=query[:, 1:])
    refuse(TypeError, "query_pos: expected a tensor", query_pos=1.0)
    refuse(TypeError, "padding_mask: expected .*bool.* got torch.float32", padding_mask=torch.zeros(2, 49))
    refuse(TypeError, "padding_mask: expected .*bool.* got list", padding_mask=[True])
    refuse(ValueError, r"padding_mask: expected \(B, S\) = \(2, 49\), got", padding_mask=torch.zeros(2, 48).bool())
