"""Detectors on our backbone and its plain twin: the same losses, and a profile that knows the parts."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[detection]'")

from bench.names import EAGER, OURS
from bench.problems.detectors import DETECTORS, DetectorProblem
from bench.profiling import detector_steps


@pytest.mark.parametrize("detector", DETECTORS)
def test_both_backbones_give_the_same_losses(detector):
    problem = DetectorProblem(detector, training=True, batch=2, side=64)
    ours, plain = (problem.calls(problem.network(name))() for name in (OURS, EAGER))
    assert ours.keys() == plain.keys()
    for name, loss in ours.items():
        torch.testing.assert_close(loss, plain[name], rtol=2e-2, atol=1e-3)


def test_features_of_the_fused_backbone_are_those_of_the_twin():
    problem = DetectorProblem("retinanet", training=False, batch=1, side=64)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, plain = (problem.network(name).backbone.features(image) for name in (OURS, EAGER))
    assert [tuple(f.shape) for f in plain] == [(1, 128, 8, 8), (1, 320, 4, 4), (1, 512, 2, 2)]
    for feature, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(feature, expected, rtol=1e-3, atol=1e-3)


def test_report(capsys, tmp_path):
    options = ["--side", "64", "--batch", "1", "--seconds", "0", "--repeats", "1", "--threads", "1"]
    detector_steps.main([*options, "--detectors", "mask-rcnn", "--output", str(tmp_path / "table.md")])
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == printed
    assert "| mask-rcnn inference, batch 1, 64×64 | " in printed
    for part in ("backbone", "pyramid", "heads", "RoIAlign", "box head", "mask head", "suppression", "AdamW"):
        assert f"\n| {part} | " in printed, part
    rows = printed.partition("| part |")[2].splitlines()[2:]
    shares = [float(cell.strip(" %")) for row in rows for cell in row.split("|")[2:4]]
    assert sum(shares) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("path", "operator", "part"),
    [
        ("backbone.features.body.stages_0.blocks.0", "convolution", "backbone"),
        ("network.backbone.fpn.layer_blocks.0.0", "convolution", "pyramid"),
        ("network.roi_heads.mask_head.0", "convolution", "mask head"),
        ("network.roi_heads", "topk", "matching and losses"),
        ("network.rpn", "nms", "suppression"),
        ("network.model.encoder.layers.0.self_attn", "deformable_attention_forward_cpu", "sampling"),
        ("network.model.encoder.layers.0.self_attn.value_proj", "addmm", "encoder"),
        ("", "sum", "matching and losses"),
        ("head", "sum", "matching and losses"),
        ("head.classification_head.conv.0", "convolution", "heads"),
    ],
)
def test_parts(path, operator, part):
    assert detector_steps.part_of(path, "forward", operator) == (part, "forward")


def test_optimizer_is_a_part():
    assert detector_steps.part_of("", "optimizer", "add_") == ("AdamW", "backward")
