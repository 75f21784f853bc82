"""Continuing a comparison: the same images, recipe and networks, or a refusal that leaves the record as it was."""

import dataclasses
import json
import shutil
import types

import pytest
from test_data import world

import compare
from comparison import settings as comparison_settings
from comparison.budget import measure_speed
from comparison.contenders import CONTENDERS
from comparison.record import FIXED
from comparison.settings import OF_THE_MACHINE, complete, same_run, training_options
from tasks.classification.options import Options
from training.errors import CheckpointError, DataError, OptionError, TrainingError


def arguments(images, output, *more):
    """One network, a part of the images, one seed: a run of two epochs of three steps."""
    return [
        "--data-path", str(images), "--output-dir", str(output), "--models", "static", "--fractions", "0.3",
        "--repeats", "2", "--val-fraction", "0.4", "--seeds", "1", "--epochs", "2", "--batch-size", "4",
        "--lr", "1e-3", "--device", "cpu", "--log-seconds", "60", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def original(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("continued") / "original"
    return compare.main(arguments(images, folder)), folder


@pytest.fixture
def begun(original, tmp_path):
    """A folder with a comparison that a test may change."""
    return shutil.copytree(original[1], tmp_path / "begun")


@pytest.fixture
def refused(begun):
    """refused(words, error, message): the call fails and leaves the record as it was."""

    def run(words, error, message):
        before = (begun / "comparison.json").read_bytes()
        with pytest.raises(error, match=message):
            compare.main(words)
        assert (begun / "comparison.json").read_bytes() == before

    return run


CHANGES = dict(
    fractions="0.5", repeats="3", val_fraction="0.5", batch_size="2", lr="0.1", amp_dtype="bfloat16",
)  # fmt: skip


@pytest.mark.parametrize("name", [*CHANGES])
def test_what_all_runs_share_cannot_change(images, begun, refused, name):
    assert name in FIXED
    option = f"--{name.replace('_', '-')}"
    refused(
        arguments(images, begun, option, CHANGES[name]), OptionError, f"{option} {CHANGES[name]} contradicts the .*"
    )


def test_what_is_not_given_is_taken_from_the_record(original, images, begun, capsys):
    few = ["--data-path", str(images), "--output-dir", str(begun), "--models", "static", "--seeds", "1"]
    record = compare.main([*few, "--device", "cpu"])
    assert "runs      1, of which 1 are finished" in capsys.readouterr().out
    assert record.runs == original[0].runs and record.images == {"validation": 6, "0.3": 6}
    assert all(record.settings[name] == original[0].settings[name] for name in FIXED)
    assert record.settings["amp_dtype"] == "float32"  # and not None, which another device takes for something else


def test_other_images_are_refused(own_images, tmp_path, refused, begun):
    (own_images / "val" / "red" / "00.png").rename(own_images / "val" / "red" / "99.png")
    refused(
        arguments(own_images, begun), OptionError,
        r"--data-path, --val-path \(validation_images\) would not be what the comparison in .*begun has begun with",
    )  # fmt: skip
    (own_images / "val" / "red" / "99.png").rename(own_images / "val" / "red" / "00.png")
    moved = shutil.move(own_images, tmp_path / "elsewhere")
    assert len(compare.main(arguments(moved, begun)).runs) == 1
    for split in ("train", "val"):
        (moved / split / "red").rename(moved / split / "rouge")
    refused(arguments(moved, begun), OptionError, r"\(classes, training_images, validation_images\) would not be")


def test_a_comparison_from_before_an_option_existed_continues(original, images, begun):
    path = begun / "comparison.json"
    content = json.loads(path.read_text())
    del content["recipe"]["accumulate_steps"]
    path.write_text(json.dumps(content))
    assert compare.main(arguments(images, begun)).runs == original[0].runs
    content["recipe"]["smoothing"] = 0.2
    path.write_text(json.dumps(content))
    with pytest.raises(OptionError, match=r"the recipe \(smoothing\) would not be"):
        compare.main(arguments(images, begun))


def test_another_recipe_or_network_is_refused(images, begun, refused, monkeypatch):
    monkeypatch.setitem(comparison_settings.RECIPE, "smoothing", 0.2)
    refused(arguments(images, begun), OptionError, r"the recipe \(smoothing\) would not be what the comparison")
    monkeypatch.undo()
    changed = dataclasses.replace(
        CONTENDERS["static"], model_kwargs={**CONTENDERS["static"].model_kwargs, "kernel_size": 3}
    )
    monkeypatch.setitem(CONTENDERS, "static", changed)
    refused(arguments(images, begun), OptionError, r"the network static \(model_kwargs, parameters\)")


def test_what_a_run_with_other_options_has_left_is_not_taken(original, images, begun, capsys):
    (begun / "comparison.json").unlink()
    with pytest.raises(CheckpointError, match=r"last.pth is of a run with other options; delete the folder .*seed0 to"):
        compare.main(arguments(images, begun, "--lr", "0.1"))
    (begun / "comparison.json").unlink()
    record = compare.main(arguments(images, begun))  # of the same run
    assert "    continues in epoch 3" in capsys.readouterr().out
    assert record.runs == original[0].runs


def test_a_run_is_the_same_on_another_machine():
    settings = complete({"data_path": "x", "device": "cpu"})
    ours = training_options(settings, CONTENDERS["mix"], 0.2, seed=0, epochs=3)
    saved = dataclasses.asdict(ours)
    assert same_run(ours, {**saved, **dict.fromkeys(OF_THE_MACHINE, "other")})
    for name in saved.keys() - set(OF_THE_MACHINE):
        assert not same_run(ours, {**saved, name: "other"}), name


def test_a_damaged_checkpoint_says_what_to_delete(images, begun):
    (begun / "comparison.json").unlink()
    (begun / "static-0.3-seed0" / "last.pth").write_bytes(b"damaged")
    with pytest.raises(
        CheckpointError, match=r"cannot be read as a checkpoint: .*; delete the folder .*static-0.3-seed0"
    ):
        compare.main(arguments(images, begun))


def test_an_epoch_without_a_batch_is_refused_before_anything_is_trained(images, tmp_path, capsys):
    words = arguments(images, tmp_path / "c", "--fractions", "1", "0.3", "--repeats", "1", "1", "--batch-size", "8")
    with pytest.raises(OptionError, match=r"--batch-size 8 is more than an epoch's 6 images with --fractions 0.3"):
        compare.main(words)
    assert "run 1" not in (output := capsys.readouterr().out) and "saved" not in output
    assert list((tmp_path / "c").iterdir()) == []


def test_an_unreadable_image_stops_a_run_that_was_saved(own_images, tmp_path, capsys):
    for file in (own_images / "val" / "red").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read the image .*red"):
        compare.main(arguments(own_images, tmp_path / "c"))
    assert "saved; continue with the same command" in capsys.readouterr().out
    assert (tmp_path / "c" / "static-0.3-seed0" / "last.pth").exists()


def test_each_run_keeps_the_conditions_it_was_made_under(original, images, begun, monkeypatch):
    here = original[0].conditions[0]
    monkeypatch.setattr("comparison.session.describe_conditions", lambda device: {**here, "device": "another GPU"})
    record = compare.main(arguments(images, begun))
    assert record.conditions == [here]  # nothing was trained on the other
    record = compare.main(arguments(images, begun, "--seeds", "2"))
    assert [run["conditions"] for run in record.runs] == [0, 1]
    assert (
        f"{here['device']}, " in (table := (begun / "comparison.md").read_text())
        and "; other runs: another GPU, " in table
    )


def test_a_network_that_diverges_does_not_end_the_comparison(images, begun, monkeypatch, capsys):
    fits = []

    def fit(run, report, progress):
        fits.append(run.options.model)
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr("comparison.session.fit", fit)
    words = arguments(images, begun, "--models", "mix", "static")
    record = compare.main(words)
    assert "    diverged in epoch 1: the loss is not finite" in capsys.readouterr().out
    assert record.diverged == [{"contender": "mix", "fraction": 0.3, "seed": 0, "epoch": 1}]
    assert [run["contender"] for run in record.runs] == ["static"]
    assert "mix with seed 0, in epoch 1" in (begun / "comparison.md").read_text()
    assert len(compare.main(words).diverged) == 1 and fits == ["container"]
    assert "runs      2, of which 2 are finished" in capsys.readouterr().out


def test_a_learning_rate_without_bounds_diverges(images, tmp_path):
    with pytest.raises(TrainingError, match="every run has diverged: choose a lower --lr"):
        compare.main(arguments(images, tmp_path / "c", "--lr", "1e30"))
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["diverged"][0]["contender"] == "static"
    words = arguments(images, tmp_path / "d", "--lr", "1e30")
    index = words.index("--epochs")
    words[index : index + 2] = ["--minutes", "1"]
    with pytest.raises(TrainingError, match="static diverges in its first steps: choose a lower --lr"):
        compare.main(words)


@pytest.mark.parametrize(("compiles", "start"), [(True, 4), (False, 0)])
def test_compilation_is_planned_for_in_every_run(monkeypatch, compiles, start):
    rows = [{"train_seconds": 5, "val_seconds": 2, "images_per_second": 1}]
    rows.append({"train_seconds": 2, "val_seconds": 1, "images_per_second": 10})
    evaluation = types.SimpleNamespace(loader=[0], batches=types.SimpleNamespace(images=30))
    task = types.SimpleNamespace(loader=[0], evaluation=evaluation)
    run = types.SimpleNamespace(task=task, output_dir="unused", history=rows)
    monkeypatch.setattr("comparison.budget.build_run", lambda *arguments: run)
    monkeypatch.setattr("comparison.budget.fit", lambda *arguments: None)
    speed = measure_speed(Options(compile=compiles), world(), None, None)
    assert (speed.training, speed.validation) == (10, 30) and start <= speed.start < start + 1
