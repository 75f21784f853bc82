"""detect.py --initial-checkpoint: a trained detector on the same objects, on others, and what does not fit."""

import pytest
import torch
from annotated_images import content, write_coco

import detect
from tasks.detection.build import build_model
from tasks.detection.detectors.backbone import body_of
from tasks.detection.option_checks import check, resolve
from tasks.detection.options import SET_DETECTORS
from training.checkpoint import read_checkpoint
from training.errors import CheckpointError, OptionError

pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[detection]'")

QUICK = [
    "--epochs", "1", "--batch-size", "2", "--short-sides", "64", "--longest-side", "64", "--warmup-steps", "0",
    "--device", "cpu", "--drop-path", "0",
]  # fmt: skip
SMALL = [
    "--model", "container", "--model-kwargs", "embed_dims=(8, 8, 16, 16)", "depths=(1, 0, 1, 0)",
    "num_heads=(1, 1, 2, 2)", "mlp_ratios=2",
]  # fmt: skip
SCENES = ["--train-scenes", "2", "--val-scenes", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(detector): the checkpoint of one step on scenes."""
    made = {}

    def make(detector):
        if detector not in made:
            folder = tmp_path_factory.mktemp(detector)
            more = ["--queries", "7"] if detector in SET_DETECTORS else []
            detect.main(["--detector", detector, "--output-dir", str(folder), *SCENES, *QUICK, *SMALL, *more])
            made[detector] = str(folder / "last.pth")
        return made[detector]

    return make


def before_the_first_step(monkeypatch, *line):
    """The weights that a run begins with, and its remarks."""
    found = []

    def build(*arguments):
        model, remarks = build_model(*arguments)
        found.append(({name: tensor.clone() for name, tensor in model.state_dict().items()}, remarks, model))
        return model, remarks

    monkeypatch.setattr("tasks.detection.build.build_model", build)
    run = detect.main([*map(str, line), *QUICK])
    return (*found[0], run)


@pytest.mark.parametrize("detector", ["retinanet", "mask-rcnn", "deformable-detr"])
def test_the_same_objects_begin_with_every_weight(trained, tmp_path, monkeypatch, detector):
    line = ["--initial-checkpoint", trained(detector), "--output-dir", tmp_path, *SCENES]
    weights, remarks, model, run = before_the_first_step(monkeypatch, *line)
    expected = read_checkpoint(trained(detector))["model"]
    assert weights.keys() <= expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name
    assert expected.keys() - weights.keys() == {n for n in expected if n.endswith("tracked") and ".body." in n}
    assert "weights that score categories" not in remarks[0] and "norms of the backbone are frozen" in remarks[1]
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in body_of(model).modules())
    if detector in SET_DETECTORS:
        assert run.task.options.queries == 7
    # A run that goes on has no file to ask, and its norms are frozen, too.
    more = detect.main(["--resume", str(tmp_path / "last.pth"), "--device", "cpu"])
    assert more.model.state_dict().keys() == run.model.state_dict().keys()


@pytest.mark.parametrize("detector", ["retinanet", "mask-rcnn", "smca-detr", "deformable-detr"])
def test_other_objects_get_fresh_scores_alone(trained, tmp_path, monkeypatch, detector):
    data = content()
    for annotation in data["annotations"]:
        left, top, width, height = annotation["bbox"]
        right, bottom = left + width, top + height
        annotation["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
    root = write_coco(tmp_path / "data", data)
    write_coco(root, data, part="val")
    line = ["--initial-checkpoint", trained(detector), "--output-dir", tmp_path / "run", "--data-path", root]
    weights, remarks, _, run = before_the_first_step(monkeypatch, *line, "--live-bn")
    expected = read_checkpoint(trained(detector))["model"]
    fresh = {name for name, tensor in weights.items() if tensor.shape != expected[name].shape}
    assert fresh and all(
        any(word in name for word in ("cls", "class", "mask_fcn_logits", "bbox_pred")) for name in fresh
    )
    for name in weights.keys() - fresh:
        assert torch.equal(weights[name], expected[name]), name
    assert f"; {len(fresh)} weights that score categories are fresh, for 3 others" in remarks[0]
    assert len(remarks) == 1  # live norms
    assert (run.task.options.detector, run.task.options.recipe) == (detector, "small")


def test_as_many_categories_of_other_names_are_others(trained, tmp_path, monkeypatch):
    data = content()
    data["categories"] += [{"id": number, "name": f"kind {number}"} for number in range(20, 27)]
    root = write_coco(tmp_path / "data", data)
    write_coco(root, data, part="val")
    line = ["--initial-checkpoint", trained("retinanet"), "--output-dir", tmp_path / "run", "--data-path", root]
    weights, remarks, *_ = before_the_first_step(monkeypatch, *line)
    expected = read_checkpoint(trained("retinanet"))["model"]
    differing = {name for name, tensor in weights.items() if not torch.equal(tensor, expected[name])}
    assert differing and all("cls_logits" in name for name in differing)
    assert "fresh, for 10 others" in remarks[0]


def test_what_does_not_fit_is_refused(trained, tmp_path):
    path = trained("retinanet")

    def options_of(**explicit):
        options = resolve(explicit)
        check(options, set(explicit))
        return options

    with pytest.raises(CheckpointError, match=r"does not fit retinanet with resnet18: \d+ weights differ, first "):
        detect.main(
            ["--initial-checkpoint", path, "--model", "resnet18", "--output-dir", str(tmp_path), *SCENES, *QUICK]
        )
    other = tmp_path / "classifier.pth"
    torch.save({**read_checkpoint(path), "task": "classification"}, other)
    with pytest.raises(CheckpointError, match=r"is of a run of classification, expected detection; .*--backbone-check"):
        options_of(initial_checkpoint=str(other))
    with pytest.raises(OptionError, match=r"--initial-checkpoint nowhere.pth: there is no such file"):
        options_of(initial_checkpoint="nowhere.pth")
    with pytest.raises(OptionError, match="leave --backbone-checkpoint out"):
        options_of(initial_checkpoint=path, backbone_checkpoint=path)
    with pytest.raises(OptionError, match="--freeze-bn contradicts"):
        options_of(initial_checkpoint=path, freeze_bn=True, live_bn=True)
    with pytest.raises(OptionError, match="--freeze-bn needs weights"):
        options_of(freeze_bn=True)
    assert options_of(freeze_bn=True, model="resnet18", model_kwargs={"pretrained": True}).freeze_bn
    with pytest.raises(OptionError, match="--queries has no effect with --detector retinanet"):
        options_of(queries=5)
    with pytest.raises(OptionError, match="--queries must be 1 or more, got 0"):
        options_of(detector="detr", queries=0)
