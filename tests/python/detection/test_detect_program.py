"""detect.py from the command line: trains, stops and continues bit for bit, evaluates, checks, refuses."""

import csv
import json

import pytest
import torch
from annotated_images import content, write_coco
from PIL import Image

import detect
from tasks.detection.build import settings_of
from tasks.detection.checkpoint import load_detector
from tasks.detection.detectors import body_of
from tasks.detection.option_checks import check, resolve
from tasks.detection.options import DetectionOptions
from tasks.detection.recipes import DEFAULT_RECIPES, RECIPES
from tasks.detection.task import Detection
from training.engine import train_epoch
from training.errors import CheckpointError, DataError, OptionError
from training.interrupt import Interrupted
from training.options import parse_explicit
from training.progress import Progress

pytest.importorskip("faster_coco_eval")


SMALL = [
    "--model", "container", "--model-kwargs", "embed_dims=(8, 8, 16, 16)", "depths=(1, 0, 1, 0)",
    "num_heads=(1, 1, 2, 2)", "mlp_ratios=2", "dynamic=(False, False, True, True)",
]  # fmt: skip


def scenes_run(folder, *more) -> list[str]:
    """Two epochs of four steps on scenes of 64 pixels, with a backbone of two blocks and dropped paths."""
    return [
        "--output-dir", str(folder), "--train-scenes", "16", "--val-scenes", "4", "--epochs", "2", "--batch-size", "4",
        "--short-sides", "48", "64", "--longest-side", "64", "--hflip", "0.5", "--warmup-steps", "2", "--device", "cpu",
        "--drop-path", "0.2", *SMALL, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detect") / "whole"
    return detect.main(scenes_run(folder)), folder


def assert_same_run(run, expected):
    timing = {"images_per_second", "train_seconds", "val_seconds"}
    for row, wanted in zip(run.history, expected.history, strict=True):
        assert {k: v for k, v in row.items() if k not in timing} == {k: v for k, v in wanted.items() if k not in timing}
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, expected.model.state_dict()[name]), name


def test_a_run_leaves_files_to_look_at(finished):
    _, folder = finished
    with open(folder / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and {"train_class", "train_box", "val_AP", "val_AP50", "val_ARl"} <= rows[0].keys()
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    for name in ("curves.png", "detections.png"):
        with Image.open(folder / name) as image:
            assert image.width > 500


# An epoch is 4 steps, then 1 batch of validation.
@pytest.mark.parametrize("checks", [2, 4, 7])
def test_a_stopped_run_continues_bit_for_bit(finished, tmp_path, stop_at, monkeypatch, checks):
    stop_at(checks)
    with pytest.raises(Interrupted):
        detect.main(scenes_run(tmp_path))
    monkeypatch.undo()
    assert_same_run(detect.main(["--resume", str(tmp_path / "last.pth"), "--device", "cpu"]), finished[0])


def test_a_run_says_what_it_trains(tmp_path, capsys):
    run = detect.main(scenes_run(tmp_path, "--limit-batches", "1"))
    output = capsys.readouterr().out
    backbone = sum(p.numel() for p in body_of(run.task.model).parameters()) / 1e6
    whole = sum(p.numel() for p in run.task.model.parameters()) / 1e6
    assert f"{whole:.2f} M parameters" in output
    assert f"detector  retinanet; its backbone has {backbone:.2f} M of the parameters" in output
    assert "recipe    scenes, with what was given:" in output and "--epochs 2" in output


def test_evaluation_of_a_checkpoint_is_that_of_the_run(finished, capsys):
    run, folder = finished
    detect.main(["--eval", str(folder / "last.pth"), "--device", "cpu"])
    output = capsys.readouterr().out
    row = run.history[-1]
    assert f"boxes  AP {row['val_AP']:.3f}  AP50 {row['val_AP50']:.3f}" in output
    assert "retinanet with container on 4 images of scenes of handwritten digits (held-out part)" in output
    results = json.loads((folder / "results.json").read_text())
    assert {tuple(result) for result in results} <= {("image_id", "category_id", "bbox", "score")}
    saved = load_detector(str(folder / "best.pth"))
    assert not saved.model.training and [c.name for c in saved.categories] == list("0123456789")


def test_accumulated_batches_have_the_gradient_of_their_mean(tmp_path):
    """Two batches of two in place of one of four: losses of detectors divide by objects, so equal only nearly."""
    runs = [
        detect.main(scenes_run(tmp_path / name, "--epochs", "1", "--drop-path", "0", *more))
        for name, more in (("one", []), ("two", ["--batch-size", "2", "--accumulate-steps", "2"]))
    ]
    assert runs[0].steps == runs[1].steps == 4


def test_groups_of_the_optimizer(finished):
    """Norms and biases do not decay; the backbone has its part of the rate; every parameter is in one group."""
    run, _ = finished
    groups = run.optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(run.model.parameters()))
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
    options = DetectionOptions(backbone_lr_scale=0.1, decay_norms=True)
    task = Detection.__new__(Detection)
    task.options, task.model = options, run.model
    scales = {group["lr_scale"]: len(group["params"]) for group in task.parameter_groups()}
    assert set(scales) == {0.1, 1.0} and all("weight_decay" not in group for group in task.parameter_groups())


def test_every_step_has_the_losses_that_were_announced(finished):
    run, _ = finished
    train_epoch(run, Progress(shown=False))
    assert set(run.position.parts) == {"class", "box"}


def test_activations_computed_again_change_nothing(finished, tmp_path):
    """But running statistics, which PyTorch's norms update once more."""
    run = detect.main(scenes_run(tmp_path / "checkpointing", "--grad-checkpointing"))
    assert [row["train_loss"] for row in run.history] == [row["train_loss"] for row in finished[0].history]
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, finished[0].model.get_parameter(name)), name


def test_bfloat16_and_steps_of_several_batches(finished, tmp_path):
    run = detect.main(scenes_run(tmp_path / "run", "--amp-dtype", "bfloat16", "--accumulate-steps", "2"))
    assert run.steps == finished[0].steps // 2 and run.compute.dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    first, last = (row["train_loss"] for row in run.history)
    assert first == pytest.approx(finished[0].history[0]["train_loss"], rel=0.1) and last < first


def coco_run(root, folder, *more) -> list[str]:
    return ["--data-path", str(root), *SMALL, "--short-sides", "48", "--longest-side", "64",
            "--epochs", "1", "--warmup-steps", "1", "--num-workers", "0", "--drop-path", "0",
            "--batch-size", "1", "--device", "cpu", "--output-dir", str(folder), *more]  # fmt: skip


def test_photographs(tmp_path, capsys):
    """COCO's files: an image without objects, a crowd, categories with gaps; a missing part is named."""
    root = write_coco(tmp_path / "data", content())
    with pytest.raises(DataError, match=r"--data-path .*: expected annotations/\*val\*\.json"):
        detect.main(coco_run(root, tmp_path / "run"))
    write_coco(root, content(), part="val")
    run = detect.main(coco_run(root, tmp_path / "run"))
    assert "3 training and 3 validation images, 3 categories, short side 48" in capsys.readouterr().out
    assert 0 <= run.history[0]["val_AP"] <= 1
    with pytest.raises(
        DataError, match=r"has objects without a mask; --detector mask-rcnn learns from the masks of all"
    ):
        detect.main(coco_run(root, tmp_path / "run2", "--detector", "mask-rcnn"))


def test_mistakes_are_listed(tmp_path, capsys):
    data = content()
    data["annotations"][0]["category_id"] = 5
    data["annotations"][1]["bbox"] = [39, 29, 9, 9]
    root = write_coco(tmp_path, data)
    write_coco(root, content(), part="val")
    with pytest.raises(DataError, match="1 mistakes that have to be put right in the files"):
        detect.main(["--check-data", "--data-path", str(root)])
    output = capsys.readouterr().out
    assert "error: " in output and "annotation 1: its category 5 is not among the categories" in output
    assert "put right: " in output and "annotation 2: its box reaches out of the image: cut off" in output
    assert "instances_val.json: 3 images, 3 objects without masks, 3 categories" in output


def test_backbones_are_listed(capsys):
    detect.main(["--list-backbones"])
    lines = capsys.readouterr().out.splitlines()
    serves = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert "serves" in serves["container_light"] and "does not serve" in serves["deit_tiny"]


def options_of(line: str) -> DetectionOptions:
    explicit = parse_explicit(line.split(), "", DetectionOptions)
    options = resolve(explicit)
    check(options, set(explicit))
    return options


def test_recipes(tmp_path):
    options = options_of(f"--data-path {tmp_path}")
    assert (options.recipe, options.opt, options.lr, options.weight_decay) == ("1x", "adamw", 1e-4, 1e-4)
    assert (options.epochs, options.decay_milestones, options.warmup_steps) == (12, (8, 11), 500)
    options = options_of(f"--data-path {tmp_path} --detector mask-rcnn --recipe swin-1x --epochs 36")
    assert (options.lr, options.weight_decay, options.epochs, options.random_crops) == (1e-4, 0.05, 36, True)
    assert options.decay_milestones == (24, 33)
    assert options_of(f"--data-path {tmp_path} --epochs 1").sched == "constant"
    options = options_of(f"--data-path {tmp_path} --detector deformable-detr")
    assert (options.recipe, options.backbone_lr_scale, options.sampling_lr_scale) == ("deformable-50", 0.1, 0.1)
    assert (options.lr, options.clip_grad, options.epochs, options.decay_milestones) == (2e-4, 0.1, 50, (40,))
    assert options_of("").recipe == "scenes" and options_of("--detector detr").recipe == "scenes"
    for detector, recipe in DEFAULT_RECIPES.items():
        assert options_of(f"--data-path {tmp_path} --detector {detector}").recipe == recipe
    options = options_of(f"--data-path {tmp_path} --detector smca-detr --recipe small")
    assert (options.short_sides, options.hflip, options.clip_grad, options.model) == ((192,), 0.5, 0.5, "container")
    assert settings_of(options).d_model == 128
    for recipe in RECIPES:
        options_of(f"--data-path {tmp_path} --recipe {recipe}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--detector yolo", "--detector: invalid choice: 'yolo'"),
        ("--recipe 3x", "--recipe: invalid choice: '3x'"),
        ("--model resnet9000", "--model resnet9000 is not known to timm; --list-backbones names ours"),
        ("--val-path x", "--val-path needs --data-path"),
        ("--data-path x --train-scenes 5", "--train-scenes has no effect with --data-path"),
        ("--check-data", "--check-data has no effect without --data-path"),
        ("--short-sides 0", "--short-sides must be each 1 or more"),
        ("--sampling-lr-scale 0.5", "--sampling-lr-scale has no effect with --detector retinanet"),
        ("--live-bn", "--live-bn has no effect without --backbone-checkpoint"),
        ("--checkpoint-key student", "--checkpoint-key has no effect without --backbone-checkpoint"),
        ("--backbone-checkpoint nowhere.pth", "--backbone-checkpoint nowhere.pth: there is no such file"),
        ("--eval nowhere.pth", "--eval nowhere.pth: there is no such file"),
        ("--hflip 2", "--hflip must be from 0 to 1, got 2.0"),
    ],
)
def test_contradictions_are_refused(line, message):
    with pytest.raises(OptionError, match=message):
        options_of(line)


def test_other_checkpoints_are_refused(finished, tmp_path):
    with pytest.raises(CheckpointError, match=r"detect.pth is not a checkpoint of this trainer"):
        torch.save({"model": {}}, tmp_path / "detect.pth")
        load_detector(str(tmp_path / "detect.pth"))
    data = write_coco(tmp_path / "data", content())
    write_coco(data, content(), part="val")
    with pytest.raises(DataError, match=r"has other categories than .*last\.pth was trained on"):
        detect.main(["--eval", str(finished[1] / "last.pth"), "--data-path", str(data), "--device", "cpu"])


@pytest.mark.parametrize("more", [{}, {"data_path": "x", "recipe": "small"}])
def test_the_recipes_arguments_are_of_its_own_backbone(more):
    assert resolve(more).model_kwargs
    assert resolve({**more, "model": "resnet18"}).model_kwargs is None
    assert resolve({**more, "model": "resnet18", "model_kwargs": {"a": 1}}).model_kwargs == {"a": 1}
