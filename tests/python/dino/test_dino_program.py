"""Runs of `dino.py` on tiny trees and on digits."""

import signal

import numpy
import pytest
import torch
from trial_runs import small_run, write_tree

import affinity
import detect
import dino
import knn
import train
from container_kernels.models import load_checkpoint
from labelled_images.sources import open_validation_source
from tasks.detection.detectors.backbone import body_of
from tasks.dino.branches import Distillation
from training.errors import CheckpointError, DataError, OptionError
from training.interrupt import Interrupted, StopGuard

TINY = {
    "model": "container_tiny", "model_kwargs": "embed_dims=(8,16) depths=(1,1) strides=(4,2) num_heads=1 mlp_ratios=2",
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("colors"))


def dino_run(images, output, *more):
    """Arguments of a run of 3 × 3 steps of two batches each, with local views."""
    return [
        "--data-path", str(images), "--output-dir", str(output), "--model", TINY["model"],
        "--model-kwargs", *TINY["model_kwargs"].split(), "--global-crops-size", "32", "--local_crops_size", "16",
        "--local_crops_number", "2", "--out_dim", "32", "--head-hidden-dim", "16", "--head-bottleneck-dim", "8",
        "--epochs", "3", "--warmup_epochs", "1", "--batch_size_per_gpu", "4", "--accumulate-steps", "2",
        "--unscale-lr", "--knn-k", "5", "20", "--eval-every", "2", "--num_workers", "0", "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino") / "whole"
    return dino.main(dino_run(images, folder)), folder


def same_weights(run, other):
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


def test_a_run_reports_teacher_student_and_controls(finished):
    run, folder = finished
    assert [row["val_knn20"] is not None for row in run.history] == [False, True, True]
    assert set(run.task.controls) == {"raw pixels", "untrained", "untrained, norms recalibrated"}
    assert {"knn5", "knn20", "few"} == set(run.task.controls["untrained"])
    for name in ("last.pth", "best.pth", "summary.csv", "curves.png"):
        assert (folder / name).stat().st_size > 0


@pytest.mark.parametrize("checks", [2, 5])
def test_a_stopped_run_goes_on_bit_for_bit(images, finished, tmp_path, monkeypatch, checks):
    check, calls = StopGuard.check, iter(range(checks, -1, -1))

    def stopping_check(self, batch=None):
        if next(calls, 1) == 0:
            self.signum = signal.SIGTERM
        check(self, batch)

    monkeypatch.setattr(StopGuard, "check", stopping_check)
    with pytest.raises(Interrupted):
        dino.main(dino_run(images, tmp_path))
    monkeypatch.setattr(StopGuard, "check", check)
    run = dino.main(["--resume", str(tmp_path / "last.pth"), "--device", "cpu"])
    same_weights(run, finished[0])
    timing = {"images_per_second", "train_seconds", "val_seconds"}
    for row, wanted in zip(run.history, finished[0].history, strict=True):
        assert {k: v for k, v in row.items() if k not in timing} == {k: v for k, v in wanted.items() if k not in timing}


def test_the_last_layer_stays_as_it_is_at_first(images, tmp_path):
    run = dino.main(dino_run(images, tmp_path, "--epochs", "2", "--freeze_last_layer", "2", "--no-controls"))
    fresh = dino.build_run(run.options, run.world, run.guard, dino.open_sources(run.options), str(tmp_path / "other"))
    assert torch.equal(run.model.student.head.prototypes, fresh.model.student.head.prototypes)
    assert not torch.equal(run.model.student.head.mlp[0].weight, fresh.model.student.head.mlp[0].weight)
    assert run.model.centre.abs().sum() > 0


def test_official_spellings(images, tmp_path):
    run = dino.main(dino_run(
        images, tmp_path, "--norm_last_layer", "false", "--use_bn_in_head", "true", "--optimizer", "adamw",
        "--arch", "container_tiny", "--drop_path_rate", "0.1", "--clip_grad", "0", "--epochs", "2",
    ))  # fmt: skip
    options = run.options
    assert not options.norm_last_layer and options.use_bn_in_head and options.clip_grad is None
    assert options.drop_path == 0.1 and options.batch_size == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--local-crops-size 64", "--local-crops-size 64 is more than --global-crops-size 32"),
        ("--local-crops-size 4", "--local-crops-size 4: container_tiny cannot take such images"),
        ("--model mixer --model-kwargs depth=1 patch_size=8", "--local-crops-size 16: mixer cannot .*--local-crops 0"),
        ("--model-ema", "--model-ema has no effect here"),
        ("--global-crops-scale 0.5 0.2", "--global-crops-scale must be two numbers"),
        ("--warmup-teacher-temp 0.03", "--warmup-teacher-temp has no effect without --warmup-teacher-temp-epochs"),
        ("--local-crops 0 --local-crops-size 16", "--local-crops-size has no effect with --local-crops-number 0"),
    ],
)
def test_wrong_options(images, tmp_path, more, message):
    with pytest.raises(OptionError, match=message):
        dino.main(dino_run(images, tmp_path, *more.split()))


def test_too_few_images_for_the_neighbours(images, tmp_path):
    with pytest.raises(DataError, match="--knn-k 200: there are only 24 training images"):
        dino.main(dino_run(images, tmp_path, "--knn-k", "10", "200"))


def test_a_class_that_is_missing_in_val(tmp_path):
    tree = write_tree(tmp_path / "tree")
    for file in (tree / "val" / "red").iterdir():
        file.unlink()
    (tree / "val" / "red").rmdir()
    with pytest.raises(DataError, match="different classes: only in the first: red"):
        dino.main(dino_run(tree, tmp_path / "run"))


def test_a_dense_affinity_learns_with_global_views_alone(images, tmp_path):
    arguments = dino_run(images, tmp_path, "--no-controls", "--epochs", "2", "--local-crops", "0", "--model", "mixer")
    at = arguments.index("--local_crops_size")
    del arguments[at : at + 4]
    at = arguments.index("--model-kwargs")
    arguments[at + 1 : at + 6] = ["depth=1", "patch_size=8", "embed_dim=16", "num_heads=2", "hidden_tokens=8"]
    assert dino.main(arguments).history[-1]["val_knn20"] >= 0


@pytest.mark.parametrize("key", ["teacher", "student"])
def test_a_classifier_starts_from_its_weights(images, finished, tmp_path, key):
    run, folder = finished
    arguments = small_run(images, tmp_path, "--epochs", "2", "--limit-batches", "1", "--lr", "1e-9")
    arguments[arguments.index("test_resnet")] = TINY["model"]
    options = ["--model-kwargs", *TINY["model_kwargs"].split(), "--initial-checkpoint", str(folder / "last.pth")]
    classifier = train.main([*arguments, *options, "--checkpoint-key", key]).model
    own = getattr(run.model, key).backbone
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(classifier.get_parameter(name), parameter, atol=1e-4, rtol=1e-4)
    fresh = type(own)(
        num_classes=0, img_size=32, embed_dims=(8, 16), depths=1, strides=(4, 2), num_heads=1, mlp_ratios=2
    )
    load_checkpoint(fresh, folder / "last.pth")
    for name, parameter in fresh.named_parameters():
        assert torch.equal(parameter, run.model.teacher.backbone.get_parameter(name)), name


@pytest.mark.parametrize("key", ["teacher", "student"])
def test_a_detector_starts_from_its_weights(tmp_path, capsys, key):
    model = [
        "--model", "container", "--model-kwargs", "embed_dims=(8, 8, 16, 16)", "depths=(1, 0, 1, 0)",
        "num_heads=(1, 1, 2, 2)", "mlp_ratios=2",
    ]  # fmt: skip
    start = dino.main([
        "--output-dir", str(tmp_path / "dino"), *model, "--global-crops-size", "64", "--epochs", "2", "--no-controls",
        "--limit-batches", "2", "--knn-k", "5", "--device", "cpu",
    ])  # fmt: skip
    detector = detect.main([
        "--output-dir", str(tmp_path / "detector"), *model, "--train-scenes", "4", "--val-scenes", "2", "--epochs", "1",
        "--batch-size", "2", "--short-sides", "64", "--longest-side", "64", "--lr", "1e-9", "--warmup-steps", "0",
        "--device", "cpu", "--backbone-checkpoint", str(tmp_path / "dino" / "last.pth"), "--checkpoint-key", key,
    ]).model  # fmt: skip
    assert "weights of the backbone loaded" in capsys.readouterr().out
    backbone, body = getattr(start.model, key).backbone, body_of(detector)
    parameters = {name.replace("stages_", "stages."): parameter for name, parameter in body.named_parameters()}
    assert len(parameters) > 20
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter, backbone.get_parameter(name), atol=1e-5, rtol=1e-4)
    other = start.model.student if key == "teacher" else start.model.teacher
    stem = next(iter(dict(backbone.named_parameters())))
    assert (other.backbone.get_parameter(stem) - backbone.get_parameter(stem)).abs().max() > 1e-4


def test_affinities_of_its_teacher(finished, images, tmp_path):
    _, folder = finished
    picture = tmp_path / "affinity.png"
    image = next((images / "val" / "red").iterdir())
    measurement = affinity.main([str(folder / "last.pth"), str(image), "--output", str(picture), "--device", "cpu"])
    assert picture.stat().st_size > 0
    assert measurement.as_dict()["layers"]


def test_official_checkpoints(finished, tmp_path):
    backbone = finished[0].model.student.backbone
    content = {
        "student": {f"module.backbone.{name}": tensor for name, tensor in backbone.state_dict().items()},
        "teacher": {f"backbone.{name}": tensor + 1 for name, tensor in backbone.state_dict().items()},
        "epoch": 3,
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    from training.checkpoint import load_weights

    for key, offset in (("student", 0), ("teacher", 1)):
        load_weights(finished[0].model.teacher.backbone, str(tmp_path / "checkpoint.pth"), branch=key)
        for name, tensor in finished[0].model.teacher.backbone.state_dict().items():
            torch.testing.assert_close(tensor, backbone.state_dict()[name] + offset)
    with pytest.raises(CheckpointError):
        load_weights(torch.nn.Linear(2, 2), str(tmp_path / "checkpoint.pth"))
    with pytest.raises(CheckpointError, match="branch must be one of teacher, student, got 'both'"):
        load_weights(torch.nn.Linear(2, 2), str(tmp_path / "checkpoint.pth"), branch="both")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--momentum-teacher 0 --momentum-teacher-end 0 --lr 1e-2", "the same target of a few prototypes. Lower --lr"),
        (
            "--teacher-temp 0.1 --momentum-teacher 0.5 --momentum-teacher-end 0.5 --lr 5e-3",
            "the same, uniform target. Lower --teacher-temp",
        ),
    ],
)
def test_planted_collapse_is_named(tmp_path, monkeypatch, capsys, more, message):
    """Without centring."""
    monkeypatch.setattr(Distillation, "update_centre", lambda self, mean, momentum: None)
    dino.main([
        "--output-dir", str(tmp_path), "--epochs", "4", "--no-controls", "--freeze-last-layer", "0", "--device", "cpu",
        *more.split(),
    ])  # fmt: skip
    assert f" s\n  collapsed: every image has {message}" in capsys.readouterr().out  # after the line of its epoch


def test_digits_are_learned(tmp_path):
    """In 7 of the 15 epochs: few-label accuracy 2.5 points above the better untrained control."""
    run = dino.main(["--output-dir", str(tmp_path), "--epochs", "7", "--eval-every", "7", "--device", "cpu"])
    untrained = max(values["few"] for name, values in run.task.controls.items() if name.startswith("untrained"))
    assert run.history[-1]["val_few"] >= untrained + 2.5


def deit_run(images, output, *more):
    """A run whose steps differ by rounding alone where their images are the same."""
    arguments = dino_run(images, output, "--opt", "sgd", "--lr", "0.01", "--no-controls", "--drop-path", "0", *more)
    at = arguments.index("--model")
    arguments[at : at + 8] = [
        "--model", "deit_small", "--model-kwargs", "embed_dim=16", "depth=1", "num_heads=2", "patch_size=8",
    ]  # fmt: skip
    return arguments


def fixed_views(self, image):
    """Four crops of the middle."""
    views = []
    for size, part in ((32, 0), (32, 2), (16, 4), (16, 6)):
        crop = image.crop((part, part, 20 - part, 20 - part)).resize((size, size))
        views.append(torch.from_numpy(numpy.array(crop)).permute(2, 0, 1).contiguous())
    return views


def test_accumulated_batches_are_one_larger_batch(images, tmp_path, monkeypatch):
    """The centre too, which moves once per step."""
    monkeypatch.setattr("tasks.dino.views.Views.__call__", fixed_views)
    parts = dino.main(deit_run(images, tmp_path / "parts"))
    whole = dino.main(deit_run(images, tmp_path / "whole", "--batch-size", "8", "--accumulate-steps", "1"))
    assert (parts.steps, parts.task.batches.per_epoch, whole.task.batches.per_epoch) == (3, 6, 3)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(
            parts.model.state_dict()[name], tensor, atol=1e-5, rtol=1e-4, msg=f"{name}: {{}}".format
        )
    assert parts.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=1e-5)


@pytest.mark.parametrize(("option", "tolerance"), [("--amp-dtype bfloat16", 2e-2), ("--grad-checkpointing", 1e-5)])
def test_other_ways_to_compute_learn_the_same(images, tmp_path, monkeypatch, option, tolerance):
    monkeypatch.setattr("tasks.dino.views.Views.__call__", fixed_views)
    plain, other = (
        dino.main(deit_run(images, tmp_path / str(number), *more)) for number, more in enumerate(([], option.split()))
    )
    # the first epoch alone: small differences of a target, at its low temperature, grow
    assert other.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=tolerance)


def test_settings_are_chosen_on_a_part_of_the_training_images(images, tmp_path):
    run = dino.main(dino_run(images, tmp_path, "--holdout", "0.25", "--epochs", "2", "--knn-k", "5", "--no-controls"))
    train_source, judged = dino.open_sources(run.options)
    assert (len(train_source.labels), len(judged.labels)) == (18, 6)
    assert sorted(judged.labels) == [0, 0, 1, 1, 2, 2]
    pixels = [[source.read(i).tobytes() for i in range(len(source.labels))] for source in (train_source, judged)]
    assert not set(pixels[0]) & set(pixels[1])
    val = open_validation_source(str(images))
    assert not {val.read(i).tobytes() for i in range(len(val.labels))} & set(pixels[0] + pixels[1])
    assert (run.task.bank.batches.images, run.task.queries.batches.images) == (18, 6)
    judgement = knn.main([str(tmp_path / "last.pth"), "--knn-k", "5", "--no-controls", "--device", "cpu"])
    assert judgement.rows["teacher"]["knn5"] == run.history[-1]["val_knn5"]


def test_a_holdout_that_takes_a_class_whole(images, tmp_path):
    with pytest.raises(DataError, match=r"--holdout 0\.01: class blue of .* has 8 images, too few"):
        dino.main(dino_run(images, tmp_path, "--holdout", "0.01"))
