"""Backbones of detectors: which networks serve, their features, and weights of classifiers."""

import pytest
import timm
import torch
from small_detectors import BODY, small_detector, small_images

from tasks.detection.detectors import body_of, describe_backbones, list_backbones, load_classifier, why_not
from tasks.detection.detectors.backbone import make_features
from training.errors import CheckpointError, OptionError

PYRAMIDS = {"container", "container_depthwise", "container_light", "h_deit"}


def classifier(**changes):
    torch.manual_seed(3)
    model = timm.create_model("container", num_classes=5, **{**BODY, **changes}).eval()
    with torch.no_grad():  # statistics and affine parameters that no new network has
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(0.1 * torch.rand_like(tensor))
    return model


def test_list_says_who_serves_and_why_not():
    found = list_backbones((8, 16, 32))
    assert {name for name, reason in found.items() if reason is None} == PYRAMIDS
    assert "one size alone" in found["deit_tiny"] and "one size alone" in found["container_pam"]
    assert found["container_tiny"] == "it has no features of stride 32, only of 2, 4, 8, 16"
    assert why_not("container_tiny", (8, 16, 32), {"strides": (4, 2, 2, 2)}) is None


def test_description_of_the_list(monkeypatch):
    monkeypatch.setattr(timm, "list_models", lambda: ["container_tiny", "mixer", "resnet18"])
    lines = describe_backbones((4, 8)).splitlines()
    assert lines[0].startswith("Backbones with features of stride 4, 8") and len(lines) == 3
    assert lines[1] == "  container_tiny  serves" and lines[2].startswith("  mixer           does not serve: it takes")


@pytest.mark.parametrize("name", ["resnet18", "pvt_v2_b0", "mobilenetv4_conv_small"])
def test_networks_of_timm_serve(name):
    features = make_features(name, (8, 16, 32))
    with torch.no_grad():
        maps = features.eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(features.channels, (8, 16, 32), strict=True)
    ]


def test_network_with_channels_last_is_turned():
    arguments = {"strict_img_size": False, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    features = make_features("swin_tiny_patch4_window7_224", (8, 16), {**arguments, "window_size": 4})
    assert features.channels == [16, 32]
    assert [tuple(x.shape) for x in features(torch.zeros(1, 3, 64, 96))] == [(1, 16, 8, 12), (1, 32, 4, 6)]


def test_one_size_alone_is_refused():
    with pytest.raises(OptionError, match=r"--model vit_tiny_patch16_224 .* takes images of one size alone"):
        make_features("vit_tiny_patch16_224", (16,))


def test_a_trial_on_shapes_fetches_nothing(monkeypatch):
    made = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *given, **more: made.append(more) or create(*given, **more))
    assert why_not("resnet18", (8, 16), {"pretrained": True}) is None
    assert "pretrained" not in made[0]


@pytest.mark.parametrize("name", ["retinanet", "detr"])
def test_weights_of_a_classifier_give_its_features(name, tmp_path):
    model = classifier()
    torch.save({"model": model.state_dict()}, tmp_path / "classifier.pth")
    detector = small_detector(name).eval()
    body = body_of(detector)
    loaded = load_classifier(detector, str(tmp_path / "classifier.pth"))
    assert set(loaded.used) == set(body.state_dict())
    parts = {key.partition(".")[0] for key in loaded.left}
    assert parts == {"norm", "head"} | ({"stages"} if name == "detr" else set())  # the last stage is not in DETR of 16
    assert len(loaded.used) + len(loaded.left) == len(model.state_dict())
    assert f"{len(loaded.used)} weights of the backbone loaded; left out {len(loaded.left)} of " in loaded.describe()
    image = torch.stack(small_images((97, 131)))
    indices = body.feature_info.out_indices
    with torch.no_grad():
        expected = model.forward_intermediates(image, indices=[*indices], intermediates_only=True)
        for one, other in zip(body(image), expected, strict=True):
            assert torch.equal(one, other)


def test_weights_of_other_networks_are_refused(tmp_path):
    path = str(tmp_path / "weights.pth")
    detector = small_detector("retinanet")
    before = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(CheckpointError, match=r"it lacks .* first stages_0.downsample"):
        load_classifier(detector, path)
    torch.save(classifier(embed_dims=(8, 8, 16, 24)).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"have another shape, first stages_3.*: expected \(16, .*, got \(24, "):
        load_classifier(detector, path)
    weights = classifier().state_dict()
    del weights["stages.2.blocks.0.norm1.weight"]
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=r"lacks 1 of \d+ weights, first stages_2.blocks.0.norm1.weight"):
        load_classifier(detector, path)
    torch.save(classifier(depths=(1, 1, 3, 1)).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"has \d+ weights more in stages of it, first stages.2.blocks.1"):
        load_classifier(detector, path)
    for key, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_classifier(detector, str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_classifier(detector, str(tmp_path / "text.pth"))


def test_weights_of_timms_networks(tmp_path):
    """Whose feature networks have other names: those of a list, and those around a whole network."""
    for name in ("resnet18", "convnext_atto"):
        model = timm.create_model(name)
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        features = make_features(name, (32,))
        loaded = load_classifier(features, str(tmp_path / "weights.pth"))
        assert {key.partition(".")[0] for key in loaded.left} <= {"fc", "head"}
        image = torch.stack(small_images((64, 64)))
        with torch.no_grad():
            actual = features.eval()(image)[0]
            assert torch.equal(actual, model.eval().forward_intermediates(image, indices=1, intermediates_only=True)[0])
