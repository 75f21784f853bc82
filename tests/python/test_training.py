"""Whole runs: they learn, leave their files behind, and continue as if they had never stopped."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
from PIL import Image
from trial_runs import PROGRAMS, small_run

import train
import validate
from tasks.classification import validation
from training.errors import CheckpointError, DataError, OptionError, TrainingError
from training.interrupt import Interrupted, StopGuard


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run of three epochs that nothing disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return train.main(small_run(images, folder)), folder


def assert_same_run(run, expected):
    timing = {"images_per_second", "train_seconds", "val_seconds"}
    for row, wanted in zip(run.history, expected.history, strict=True):
        assert {k: v for k, v in row.items() if k not in timing} == {k: v for k, v in wanted.items() if k not in timing}
    for module, other in ((run.model, expected.model), (run.ema.module, expected.ema.module)):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


# An epoch is 6 training batches, then 4 batches of validation for the weights and 4 for their average.
@pytest.mark.parametrize("batches", [0, 3, 8, 14, 20])
def test_a_resumed_run_equals_an_uninterrupted_one(finished, images, tmp_path, stop_at, monkeypatch, batches):
    stop_at(batches)
    with pytest.raises(Interrupted):
        train.main(small_run(images, tmp_path))
    monkeypatch.undo()
    position = torch.load(tmp_path / "last.pth", weights_only=True)["position"]
    assert (position["epoch"], position["step"]) == (batches // 14, min(batches % 14, 6))
    resumed = train.main(["--resume", str(tmp_path / "last.pth"), "--device", "cpu"])
    assert_same_run(resumed, finished[0])


def test_steps_of_several_batches_are_resumed_between_them(images, tmp_path, stop_at, monkeypatch, capsys):
    """Six batches are a step of four and one of two."""
    accumulated = ("--accumulate-steps", "4")
    whole = train.main(small_run(images, tmp_path / "whole", *accumulated))
    assert "3 epochs of 2 steps (4 batches each), batch 16," in capsys.readouterr().out
    stop_at(11)  # an epoch has 2 checks of steps and 8 of evaluations
    with pytest.raises(Interrupted):
        train.main(small_run(images, tmp_path / "parts", *accumulated))
    monkeypatch.undo()
    assert torch.load(tmp_path / "parts" / "last.pth", weights_only=True)["position"]["step"] == 1
    assert_same_run(train.main(["--resume", str(tmp_path / "parts" / "last.pth"), "--device", "cpu"]), whole)


def test_workers_change_nothing(finished, images, tmp_path):
    assert_same_run(train.main(small_run(images, tmp_path, "--num-workers", "2")), finished[0])


def test_another_seed_is_another_run(finished, images, tmp_path):
    run = train.main(small_run(images, tmp_path, "--seed", "1", "--epochs", "2"))
    assert run.history[0]["train_loss"] != finished[0].history[0]["train_loss"]


def test_a_run_leaves_its_records(finished, capsys):
    run, folder = finished
    assert sorted(os.listdir(folder)) == ["best.pth", "curves.png", "last.pth", "summary.csv"]
    with open(folder / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["train_loss"]) == run.history[2]["train_loss"]
    assert {float(row["val_top5"]) for row in rows} == {100.0}
    with Image.open(folder / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width >= 1000
    assert float(rows[2]["lr"]) < 0.3 * float(rows[1]["lr"])  # cosine, after one epoch of warm-up
    last = torch.load(folder / "last.pth", weights_only=True)
    assert last["position"]["epoch"] == 3 and last["classes"] == ["blue", "green", "red"]


def test_validate_and_eval_agree_with_the_trainer(finished, capsys):
    run, folder = finished
    last = str(folder / "last.pth")
    row = run.history[-1]
    for arguments, top1, loss in (
        (["--checkpoint", last], row["val_top1"], row["val_loss"]),
        (["--checkpoint", last, "--use-ema"], row["ema_top1"], row["ema_loss"]),
    ):
        capsys.readouterr()
        validate.main([*arguments, "--json", "--num-workers", "0", "--batch-size", "7", "--device", "cpu"])
        result = json.loads(capsys.readouterr().out)
        assert (result["top1"], result["images"], result["input_size"]) == (top1, 15, 32)
        assert result["loss"] == pytest.approx(loss, rel=1e-5)
    train.main(["--eval", "--resume", last, "--num-workers", "0", "--device", "cpu"])
    assert f"top-1 {row['val_top1']:.2f} %" in capsys.readouterr().out
    best = max(max(row["val_top1"], row["ema_top1"]) for row in run.history)
    judgement = validate.main(["--checkpoint", str(folder / "best.pth"), "--num-workers", "0", "--device", "cpu"])
    assert judgement.metrics.top1 == best


def test_arguments_of_the_model_come_back_with_its_checkpoint(images, tmp_path, capsys):
    narrow = ["--model", "container_tiny", "--model-kwargs", "embed_dims=(32,32,32,32)", "num_heads=(1,1,1,1)"]
    fewer = ["--train-fraction", "0.5", "--epoch-repeats", "2", "--epochs", "2", "--mean", "0.1", "0.2", "0.3"]
    run = train.main(small_run(images, tmp_path, *narrow, "dynamic=False", *fewer))
    output = capsys.readouterr().out
    assert "model     container_tiny embed_dims=(32, 32, 32, 32) num_heads=(1, 1, 1, 1) dynamic=False, 0.0" in output
    assert "12 training (2 times an epoch) and 15 validation images" in output
    last = str(tmp_path / "last.pth")
    judgement = validate.main(["--checkpoint", last, "--num-workers", "0", "--device", "cpu"])
    assert judgement.metrics.top1 == run.history[-1]["val_top1"]
    assert judgement.metrics.loss == pytest.approx(run.history[-1]["val_loss"], rel=1e-5)  # normalized alike
    assert run.task.image_format.mean == (0.1, 0.2, 0.3)
    train.main(["--eval", "--resume", last, "--device", "cpu"])
    longer = train.main(["--resume", last, "--epochs", "3", "--device", "cpu"])
    assert len(longer.history) == 3 and longer.model.num_features == 32
    with pytest.raises(CheckpointError, match="does not fit Container"):
        validate.main(["--checkpoint", last, "--model-kwargs", "dynamic=False", "--device", "cpu"])


def test_a_dense_pyramid_takes_the_input_size_and_is_judged_at_another(images, tmp_path):
    dense = ["--model", "container_tiny", "--model-kwargs", "static='both'", "depths=(1,1,1,1)"]
    run = train.main(small_run(images, tmp_path, *dense, "--epochs", "2", "--input-size", "64"))
    assert run.task.image_format.size == 64
    assert run.model.stages[0].blocks[0].aggregation.grid_size == (32, 32)
    last = ["--checkpoint", str(tmp_path / "last.pth"), "--num-workers", "0", "--device", "cpu"]
    assert validate.main(last).metrics.top1 == run.history[-1]["val_top1"]
    assert validate.main([*last, "--input-size", "32"]).input_size == 32


def test_curves_are_not_drawn_more_often_than_every_few_seconds(images, tmp_path, monkeypatch):
    drawn = []
    draw_curves = "tasks.classification.task.draw_curves"
    monkeypatch.setattr(draw_curves, lambda file, history, title: drawn.append(len(history)))
    train.main(small_run(images, tmp_path, "--epochs", "4", "--limit-batches", "1"))
    assert drawn == [1, 4]


def test_validate_refuses_other_classes(finished, own_images):
    (own_images / "val" / "red").rename(own_images / "val" / "rouge")
    with pytest.raises(DataError, match=r"val has other classes than .*last.pth was trained on"):
        validate.main(["--checkpoint", str(finished[1] / "last.pth"), "--data-path", str(own_images)])


def test_fine_tuning_starts_from_the_weights(finished, images, tmp_path):
    weights = ["--initial-checkpoint", str(finished[1] / "best.pth"), "--lr", "1e-6", "--min-lr", "0"]
    run = train.main(small_run(images, tmp_path, *weights, "--limit-batches", "1", "--epochs", "2"))
    pretrained = torch.load(finished[1] / "best.pth", weights_only=True)["model"]
    drift = max(
        (run.model.state_dict()[name] - pretrained[name]).abs().max() for name in ("fc.weight", "conv1.0.weight")
    )
    assert drift < 1e-4


def test_an_unreadable_image_stops_the_run_after_saving_it(own_images, tmp_path, capsys):
    broken = own_images / "train" / "green" / "03.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    with pytest.raises(DataError, match=re.escape(f"cannot read the image {broken}")):
        train.main(small_run(own_images, tmp_path / "run", "--no-repeated-aug"))
    assert "saved; continue with: python python/train.py --resume" in capsys.readouterr().out
    broken.write_bytes(whole)
    resumed = train.main(["--resume", str(tmp_path / "run" / "last.pth")])
    expected = train.main(small_run(own_images, tmp_path / "whole", "--no-repeated-aug"))
    assert_same_run(resumed, expected)


def test_a_removed_image_restarts_the_epoch(own_images, tmp_path, stop_at, monkeypatch, capsys):
    stop_at(3)
    with pytest.raises(Interrupted):
        train.main(small_run(own_images, tmp_path / "run"))
    monkeypatch.undo()
    (own_images / "train" / "green" / "03.png").unlink()
    train.main(["--resume", str(tmp_path / "run" / "last.pth"), "--device", "cpu"])
    assert "the order of the images has changed: epoch 1 starts over" in capsys.readouterr().out


def test_other_classes_cannot_be_resumed(finished, own_images):
    for split in ("train", "val"):
        (own_images / split / "red").rename(own_images / split / "rouge")
    with pytest.raises(CheckpointError, match="--resume: the checkpoint was trained on blue, green, red"):
        train.main(["--resume", str(finished[1] / "last.pth"), "--data-path", str(own_images), "--epochs", "4"])


def test_a_loss_that_is_not_finite_spares_the_checkpoint(images, tmp_path, monkeypatch):
    import training.engine

    update, updates = training.engine.update_weights, []

    def breaking_update(run):
        updates.append(run)
        if len(updates) == 9:
            for parameter in run.model.parameters():
                parameter.grad.mul_(float("nan"))
        update(run)

    monkeypatch.setattr(training.engine, "update_weights", breaking_update)
    with pytest.raises(TrainingError, match=r"the loss is not finite \(epoch 2, step 4 of 6\).*--clip-grad"):
        train.main(small_run(images, tmp_path))
    last = torch.load(tmp_path / "last.pth", weights_only=True)
    assert last["position"] == {"epoch": 1, "step": 0, "loss_sum": 0.0, "images": 0, "seconds": 0.0, "parts": {}}
    assert all(tensor.isfinite().all() for tensor in last["model"].values())


def test_other_parts_run(images, tmp_path):
    others = ["--opt", "sgd", "--momentum", "0.8", "--sched", "step", "--decay-epochs", "1", "--clip-grad", "1"]
    plain = ["--mixup", "0", "--cutmix", "0", "--aa", "none", "--reprob", "0", "--no-model-ema", "--no-channels-last"]
    size = ["--amp-dtype", "bfloat16", "--input-size", "72", "--epochs", "2"]
    arguments = [argument for argument in small_run(images, tmp_path) if argument not in ("--model-ema-decay", "0.9")]
    run = train.main([*arguments, *others, *plain, *size])
    assert len(run.history) == 2 and run.history[-1]["ema_top1"] is None
    assert run.optimizer.param_groups[0]["momentum"] == 0.8
    assert run.task.image_format.size == 72


def test_grad_checkpointing_reaches_the_network(images, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("container_kernels.models.base.checkpoint", lambda block, x: calls.append(1) or block(x))
    arguments = ["--model", "container_tiny", "--epochs", "1", "--limit-batches", "2", "--warmup-epochs", "0"]
    train.main(small_run(images, tmp_path / "run", *arguments))
    assert not calls
    train.main(small_run(images, tmp_path / "again", *arguments, "--grad-checkpointing"))
    assert calls


def test_ctrl_c_saves_and_the_run_continues(images, tmp_path):
    command = [sys.executable, str(PROGRAMS / "train.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, *small_run(images, tmp_path, "--epochs", "5000", "--num-workers", "1", "--log-seconds", "0.01")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if re.search(r"epoch +2/5000 .*loss", line):
                break
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT, output
    assert "SIGINT: saving after this step" in output and "Traceback" not in output
    position = torch.load(tmp_path / "last.pth", weights_only=True)["position"]
    assert position["epoch"] >= 1

    resume = ["--resume", str(tmp_path / "last.pth"), "--epochs", str(position["epoch"] + 1), "--num-workers", "0"]
    run = train.main(resume)
    assert len(run.history) == position["epoch"] + 1


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    before = signal.getsignal(signal.SIGINT)
    from training.distributed import World

    with StopGuard(World(0, 1, torch.device("cpu"), None)) as guard:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # what torchrun passes on of the same Ctrl-C
        assert guard.signum == signal.SIGINT and exits == []
        monkeypatch.setattr(time, "monotonic", lambda: now + 2)
        os.kill(os.getpid(), signal.SIGINT)
        assert exits == [130]
    assert signal.getsignal(signal.SIGINT) is before


def test_validate_needs_to_know_what_to_judge(finished, images, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(finished[0].model.state_dict(), weights)
    for arguments, message in (
        ([], "--checkpoint is needed"),
        (["--checkpoint", "nowhere.pth"], r"--checkpoint nowhere.pth: there is no such file"),
        (["--checkpoint", str(weights)], r"--model is needed: .*weights.pth does not say"),
        (["--checkpoint", str(weights), "--model", "test_resnet"], r"--data-path is needed: .*weights.pth"),
        (["--checkpoint", str(weights), "--frobnicate"], "unknown option --frobnicate"),
    ):
        with pytest.raises(OptionError, match=message):
            validate.main(arguments)
    with pytest.raises(DataError, match=r"test_resnet has 1000 classes, .*colors/val has 3"):
        validate.main(["--checkpoint", str(weights), "--model", "test_resnet", "--data-path", str(images)])


def test_weights_of_other_programs_are_judged(finished, images, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save({"state_dict": finished[0].model.state_dict()}, weights)
    model = ["--model", "test_resnet", "--num-classes", "3", "--input-size", "32", "--device", "cpu"]
    judgement = validate.main(["--checkpoint", str(weights), "--data-path", str(images), *model])
    assert judgement.metrics.top1 == finished[0].history[-1]["val_top1"]


@pytest.mark.parametrize("name", ["container_tiny", "repghostnet_050", "test_resnet"])
def test_a_fused_network_is_judged_alike(name, images, tmp_path, monkeypatch):
    """Ours by its own method, others by timm's function, which leaves a network without anything to fuse as it is."""
    fuse, fused = validation.fuse, []

    def recording_fuse(model):
        fused.append(fuse(model))
        return fused[-1]

    monkeypatch.setattr(validation, "fuse", recording_fuse)
    model = timm.create_model(name, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    arguments = ["--model", name, "--num-classes", "3", "--checkpoint", str(tmp_path / "weights.pth")]
    arguments += ["--data-path", str(images), "--input-size", "32", "--num-workers", "0", "--device", "cpu"]
    plain, metrics = (validate.main([*arguments, *more]).metrics for more in ([], ["--fuse"]))
    assert metrics.loss == pytest.approx(plain.loss, rel=1e-4) and metrics.images == 15
    assert len(fused) == 1
    assert (fused[0].state_dict().keys() == model.state_dict().keys()) == (name == "test_resnet")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_gpu_trains_in_low_precision(images, tmp_path, dtype):
    run = train.main(small_run(images, tmp_path, "--device", "cuda", "--amp-dtype", dtype))
    assert run.compute.dtype == getattr(torch, dtype) and next(run.model.parameters()).is_cuda
    last = ["--checkpoint", str(tmp_path / "last.pth"), "--num-workers", "0", "--amp-dtype", dtype]
    assert validate.main(last).metrics.loss == pytest.approx(run.history[-1]["val_loss"], rel=1e-2)
