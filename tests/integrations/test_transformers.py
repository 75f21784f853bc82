"""Networks of transformers on our operation: the same numbers, and back again."""

import copy
import importlib
import importlib.util
import io
import sys

import pytest
import torch

from container_kernels.testing import assert_within_budget

transformers = pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[integrations]'")

from container_kernels.integrations.transformers import use_deformable_attention  # noqa: E402

FAMILIES = (
    "deformable_detr",
    "grounding_dino",
    "lw_detr",
    "mm_grounding_dino",
    "omdet_turbo",
    "pp_doclayout_v2",
    "pp_doclayout_v3",
    "pp_doclayout_v4",
    "rf_detr",
    "rt_detr",
)
FUNCTION_FAMILIES = ("mask2former", "oneformer")
OTHER_FAMILIES = ("d_fine", "deimv2", "rt_detr_v2")
SIZES = [(5, 7), (3, 4), (1, 2)]


def installed(families):
    """Those that this version of transformers has: the newest came with 5.24."""
    return {family for family in families if importlib.util.find_spec(f"transformers.models.{family}")}


def file_of(family):
    if not installed([family]):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


DETR = file_of("deformable_detr")
INNER = DETR.MultiScaleDeformableAttention


def small_config(**changes):
    backbone = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6, 8, 10], depths=[1] * 4, out_features=["stage2", "stage3", "stage4"]
    )
    return transformers.DeformableDetrConfig(
        **{
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": backbone,
            "d_model": 64,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "num_queries": 6,
            "num_feature_levels": 3,
            "encoder_n_points": 3,
            "decoder_n_points": 2,
            "num_labels": 3,
            "dropout": 0.0,
            "activation_dropout": 0.0,
            "attention_dropout": 0.0,
            **changes,
        }
    )


def small_layer():
    """transformers' layer with offsets and weights that depend on the query."""
    layer = DETR.DeformableDetrMultiscaleDeformableAttention(small_config(d_model=32), num_heads=4, n_points=3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def layer_inputs(coordinates=2, dtype=torch.float32, batch=2, queries=6):
    return {
        "hidden_states": torch.randn(batch, queries, 32).to(dtype).requires_grad_(),
        "position_embeddings": torch.randn(batch, queries, 32).to(dtype).requires_grad_(),
        "encoder_hidden_states": torch.randn(batch, 49, 32).to(dtype).requires_grad_(),
        "reference_points": torch.rand(batch, queries, 3, coordinates).to(dtype).requires_grad_(),
    }


def call(layer, given):
    mask = torch.ones(2, 49, dtype=torch.bool)
    mask[0, 30:] = False
    out, _ = layer(
        **given,
        attention_mask=mask,
        spatial_shapes=torch.tensor(SIZES),
        spatial_shapes_list=SIZES,
        level_start_index=None,
    )
    return out


def layer_results(layer, given, grad_out):
    """The result and the gradients of parameters and inputs by name."""
    out = call(layer, given)
    named = {**dict(layer.named_parameters()), **given}
    grads = torch.autograd.grad(out, list(named.values()), grad_out.to(out))
    return {"out": out, **dict(zip(named, grads, strict=True))}


def core_inputs(dtype=torch.float32):
    """What the layer without parameters is called with."""
    weights = torch.randn(2, 6, 4, 9).softmax(-1).view(2, 6, 4, 3, 3)
    return (
        torch.randn(2, 49, 4, 8).to(dtype),
        torch.tensor(SIZES),
        SIZES,
        torch.tensor([0, 35, 47]),
        (torch.rand(2, 6, 4, 3, 3, 2) * 1.2 - 0.1).to(dtype),
        weights.to(dtype),
        64,
    )


def close(actual, expected, scale=0.0):
    """1e-5 of the tensor's norm; of `scale` where that is larger."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    return (actual - expected).norm() <= 1e-5 * max(expected.norm(), scale)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_layer(coordinates):
    layer, given = small_layer(), layer_inputs(coordinates)
    grad_out = torch.randn(2, 6, 32)
    expected = layer_results(layer, given, grad_out)
    with use_deformable_attention(layer) as use:
        assert use.changed == ["attn"] and not use.skipped
        actual = layer_results(layer, given, grad_out)
    for name, result in actual.items():
        assert close(result, expected[name]), name
        assert result.norm() > 0, name


def between_pixels(coordinates):
    """References a quarter of a pixel or more from pixel centres, where the gradient of a location jumps."""
    sides = torch.tensor(SIZES).flip(-1)
    whole = (torch.rand(2, 6, 3, 2) * (sides + 1)).floor() - 1
    points = (whole + 0.75 + 0.5 * torch.rand(2, 6, 3, 2)) / sides
    return torch.cat([points, torch.rand(2, 6, 3, coordinates - 2)], -1)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_layer_in_bfloat16(coordinates):
    layer, given = small_layer().bfloat16(), layer_inputs(coordinates, torch.bfloat16)
    given["reference_points"] = between_pixels(coordinates).bfloat16().requires_grad_()
    with torch.no_grad():  # no offset that leads across one
        layer.sampling_offsets.weight.mul_(0.01)
        layer.sampling_offsets.bias.mul_(0.01)
    grad_out = torch.randn(2, 6, 32).bfloat16()
    double = {name: tensor.detach().double().requires_grad_() for name, tensor in given.items()}
    exact = layer_results(copy.deepcopy(layer).double(), double, grad_out)
    eager = layer_results(layer, given, grad_out)
    with use_deformable_attention(layer):
        actual = layer_results(layer, given, grad_out)
    for name, result in actual.items():
        assert result.dtype == torch.bfloat16
        assert_within_budget(name, result, eager[name], exact[name])


@pytest.mark.parametrize(
    "changes",
    [{}, {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 6}],
    ids=["plain", "two_stage"],
)
def test_whole_network(changes):
    model = transformers.DeformableDetrForObjectDetection(small_config(**changes)).eval()
    # As initialized, the encoder looks at pixel centres, where the gradient jumps: rounding decides to which side.
    for name, parameter in model.named_parameters():
        if name.endswith("sampling_offsets.bias"):
            torch.nn.init.normal_(parameter, std=2)
    image = torch.randn(2, 3, 64, 96)
    mask = torch.ones(2, 64, 96, dtype=torch.long)
    mask[0, :, 60:] = 0
    mask[1, 40:] = 0

    def results():
        model.zero_grad()
        output = model(image, pixel_mask=mask)
        (output.logits.square().sum() + output.pred_boxes.square().sum()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"logits": output.logits, "boxes": output.pred_boxes, **gradients}

    expected = results()
    with use_deformable_attention(model) as use:
        assert len(use.changed) == 3 and all(path.endswith("_attn.attn") for path in use.changed)
        actual = results()
    assert actual.keys() == expected.keys() and len(actual) > 90
    # Some gradients are zero but for rounding, as that of a bias of keys.
    scale = 1e-3 * max(tensor.norm() for tensor in expected.values())
    for name, result in actual.items():
        assert close(result, expected[name], scale), name


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    file = file_of(family)
    cls = file.MultiScaleDeformableAttention
    before, given = cls.forward, core_inputs()
    expected = cls()(*given)
    with use_deformable_attention(file) as use:
        assert use.changed == [f"{file.__name__}.MultiScaleDeformableAttention"]
        assert cls.forward is not before
        torch.testing.assert_close(cls()(*given), expected, rtol=1e-5, atol=1e-6)
    assert cls.forward is before


@pytest.mark.parametrize("family", FUNCTION_FAMILIES)
def test_families_with_a_function(family):
    file = file_of(family)
    before = file.multi_scale_deformable_attention
    value, _, sizes, _, locations, weights, _ = core_inputs()
    expected = before(value, sizes, locations, weights)
    with use_deformable_attention(file) as use:
        assert use.changed == [f"{file.__name__}.multi_scale_deformable_attention"]
        now = file.multi_scale_deformable_attention
        assert now is not before
        torch.testing.assert_close(now(value, sizes, locations, weights), expected, rtol=1e-5, atol=1e-6)
        assert use_deformable_attention(file).skipped == {use.changed[0]: "is on it already"}
    assert file.multi_scale_deformable_attention is before


def test_all_families_at_once():
    with use_deformable_attention() as use:
        changed = {path.split(".")[2] for path in use.changed}
        assert changed >= installed(FAMILIES) | installed(FUNCTION_FAMILIES)
        assert {path.split(".")[2] for path in use.skipped} >= installed(OTHER_FAMILIES)
        text = str(use)
        assert all(path in text for path in (*use.changed, *use.skipped)) and "decoder_method='discrete'" in text
        layer = small_layer()
        assert layer.attn.forward.__func__ is INNER.forward and "forward" not in vars(layer.attn)
    for family in installed(FAMILIES):
        file = file_of(family)
        assert file.MultiScaleDeformableAttention.forward.__module__ == file.__name__


def test_a_family_by_any_of_its_classes():
    before = INNER.forward
    for given in (INNER, transformers.DeformableDetrModel, DETR.DeformableDetrMultiscaleDeformableAttention):
        with use_deformable_attention(given) as use:
            assert use.changed == [f"{DETR.__name__}.MultiScaleDeformableAttention"]
            assert INNER.forward is not before
        assert INNER.forward is before


def test_one_model_alone():
    layer, other = small_layer(), small_layer()
    use = use_deformable_attention(layer)
    assert "forward" in vars(layer.attn) and "forward" not in vars(other.attn)
    assert INNER.forward.__module__ == DETR.__name__
    use.undo()
    assert "forward" not in vars(layer.attn)
    use.undo()  # nothing left to do


def test_undone_after_an_exception():
    layer, before = small_layer(), INNER.forward
    for given in (layer, None):
        with pytest.raises(ZeroDivisionError), use_deformable_attention(given):
            raise ZeroDivisionError
    assert INNER.forward is before and "forward" not in vars(layer.attn)


def test_nested():
    """The outer use stays on after the inner one; a model's own outlives its class's."""
    before, layer = INNER.forward, small_layer()
    with use_deformable_attention(INNER):
        ours = INNER.forward
        with use_deformable_attention(INNER) as inner:
            assert not inner.changed and list(inner.skipped.values()) == ["is on it already"]
        assert INNER.forward is ours
        kept = use_deformable_attention(layer)
    assert INNER.forward is before and kept.changed == ["attn"] and "forward" in vars(layer.attn)


def test_what_was_in_its_place_comes_back():
    layer = small_layer()
    hook = layer.attn.forward = lambda *arguments: INNER.forward(layer.attn, *arguments)
    with use_deformable_attention(layer):
        assert layer.attn.forward is not hook
    assert layer.attn.forward is hook


def test_what_someone_else_put_there_since_stays():
    layer = small_layer()
    use = use_deformable_attention(layer)
    hook = layer.attn.forward = lambda *arguments: INNER.forward(layer.attn, *arguments)
    use.undo()
    assert layer.attn.forward is hook


def test_a_family_that_cannot_be_imported_is_named(monkeypatch):
    import_module = importlib.import_module

    def without_one(name, *arguments):
        if name.endswith("modeling_grounding_dino"):
            raise ImportError("no timm here")
        return import_module(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without_one)
    with use_deformable_attention() as use:
        assert any("no timm here" in reason for reason in use.skipped.values()) and use.changed


def test_copies_are_changed_models_of_their_own():
    layer, given = small_layer(), layer_inputs()
    expected = call(layer, given)
    use = use_deformable_attention(layer)
    memory = io.BytesIO()
    torch.save(layer, memory)
    memory.seek(0)
    copies = [copy.deepcopy(layer), torch.load(memory, weights_only=False)]
    use.undo()
    for changed in copies:
        assert "forward" in vars(changed.attn)
        assert close(call(changed, given), expected)


def test_state_dict_is_unchanged():
    layer = small_layer()
    names = list(layer.state_dict())
    with use_deformable_attention(layer):
        assert list(layer.state_dict()) == names


@pytest.mark.parametrize("of_class", [False, True])
def test_compiles_whole(of_class, fresh_compiler):
    """`spatial_shapes_list` is on the host: no value of a tensor is asked for."""
    layer, given = small_layer(), layer_inputs()
    expected = call(layer, given)
    with use_deformable_attention(INNER if of_class else layer):
        actual = call(torch.compile(layer, fullgraph=True, backend="aot_eager"), given)
    assert close(actual, expected)
    actual.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_autocast():
    """Locations stay in float32 where reference points are."""
    layer, given = small_layer(), layer_inputs()
    expected = call(layer, given)
    with use_deformable_attention(layer), torch.autocast("cpu", torch.bfloat16):
        actual = call(layer, given)
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).norm() < 0.02 * expected.norm()


def test_shapes_as_a_tensor_alone():
    value, shapes, sizes, *rest = core_inputs()
    expected = INNER()(value, shapes, sizes, *rest)
    with use_deformable_attention(INNER):
        torch.testing.assert_close(INNER()(value, shapes, None, *rest), expected, rtol=1e-5, atol=1e-6)


def test_class_of_another_signature_is_left_alone():
    class MultiScaleDeformableAttention(torch.nn.Module):
        def forward(self, query, reference_points):
            return query

    for given in (MultiScaleDeformableAttention, MultiScaleDeformableAttention()):
        with pytest.raises(ValueError, match=r"its forward takes \((self, )?query, reference_points\)"):
            use_deformable_attention(given)


def test_model_that_calls_a_function_of_its_file():
    """Of the file's classes, one by name, without the sizes of a whole network."""
    for family, class_name in (
        ("mask2former", "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention"),
        ("d_fine", "DFineMultiscaleDeformableAttention"),
    ):
        cls = getattr(file_of(family), class_name)
        module = cls.__new__(cls)
        torch.nn.Module.__init__(module)
        reason = r"use_deformable_attention\(Mask2FormerPixel" if family == "mask2former" else "number of points"
        with pytest.raises(ValueError, match=reason):
            use_deformable_attention(torch.nn.Sequential(module))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"model_or_class: expected a Multi.* got a model of class Linear"):
        use_deformable_attention(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"model_or_class: .* got the class Linear"):
        use_deformable_attention(torch.nn.Linear)
    with pytest.raises(ValueError, match=r"model_or_class: .* got the Python module torch"):
        use_deformable_attention(torch)
    with pytest.raises(TypeError, match=r"model_or_class: expected a model, a class, a Python module or None, got str"):
        use_deformable_attention("deformable_detr")


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'container_kernels\[integrations\]'"):
        use_deformable_attention()
