"""A comparison of tiny length: its runs are the trainer's, it continues where it stopped, it stays in its time."""

import dataclasses
import json
import os
import statistics

import pytest
import torch
from PIL import Image

import compare
import validate
from comparison.budget import SAFETY, Speed, choose_epochs
from comparison.contenders import CONTENDERS, CORE
from comparison.cost import count_cost
from comparison.plan import Trial, plan_trials
from comparison.record import FORMAT
from comparison.settings import Settings, complete, training_options
from training.errors import CheckpointError, OptionError
from training.interrupt import Interrupted
from training.options import flag, parse_explicit

TIMING = ("images_per_second", "train_seconds", "val_seconds")


def arguments(images, output, *more):
    """Two networks, two parts of the images, two seeds: eight runs of two epochs."""
    return [
        "--data-path", str(images), "--output-dir", str(output), "--models", "static", "mix", "--fractions", "1", "0.5",
        "--repeats", "1", "2", "--val-fraction", "0.4", "--seeds", "2", "--epochs", "2", "--batch-size", "8",
        "--device", "cpu", "--log-seconds", "60", *more,
    ]  # fmt: skip


def settings_of(line: str) -> Settings:
    return complete(parse_explicit(line.split(), "", Settings))


def without_timing(record):
    """The runs by what they are, and what they measured but time."""
    return {
        (run["contender"], run["fraction"], run["seed"]): [
            {name: value for name, value in row.items() if name not in TIMING} for row in run["history"]
        ]
        for run in record.runs
    }


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A comparison that nothing disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("comparisons") / "whole"
    return compare.main(arguments(images, folder)), folder


def test_a_comparison_leaves_its_records(finished):
    record, folder = finished
    runs = [f"{name}-{part}-seed{seed}" for name in ("mix", "static") for part in ("0.5", "1") for seed in (0, 1)]
    assert sorted(os.listdir(folder)) == sorted([*runs, "comparison.json", "comparison.md", "comparison.png"])
    saved = json.loads((folder / "comparison.json").read_text())
    assert saved["runs"] == record.runs and len(saved["runs"]) == 8 and saved["epochs"] == 2
    assert saved["images"] == {"validation": 6, "1": 24, "0.5": 12}
    assert len(saved["conditions"]) == 1 and {run["conditions"] for run in saved["runs"]} == {0}
    assert {"device", "threads", "torch", "timm", "container_kernels"} <= set(saved["conditions"][0])
    table = (folder / "comparison.md").read_text()
    assert "24 training images, 1 pass an epoch; 12 training images, 2 passes an epoch; judged on 6 others" in table
    assert table.count("| mix (pyramid) | dynamic + local | 0.912 M |") == 2
    with Image.open(folder / "comparison.png") as picture:
        assert picture.format == "PNG" and picture.width >= 1000


def test_a_run_is_the_trainers(finished):
    last = str(finished[1] / "static-0.5-seed1" / "last.pth")
    judgement = validate.main(["--checkpoint", last, "--num-workers", "0", "--device", "cpu"])
    assert judgement.model == "container_depthwise" and judgement.metrics.images == 15


def test_seeds_make_runs_differ_and_networks_share_their_images(finished):
    runs = without_timing(finished[0])
    assert runs["mix", 1.0, 0] != runs["mix", 1.0, 1] != runs["mix", 0.5, 1] and len(runs) == 8


# A run has two epochs of 3 + 1 batches; 8 of them belong to the first run.
@pytest.mark.parametrize("batches", [2, 13])
def test_a_stopped_comparison_continues_with_the_same_command(
    finished, images, tmp_path, stop_at, monkeypatch, capsys, batches
):
    words = arguments(images, tmp_path / "c", "--seeds", "1")
    stop_at(batches)
    with pytest.raises(Interrupted):
        compare.main(words)
    monkeypatch.undo()
    assert "saved; continue with the same command" in capsys.readouterr().out
    done = len(json.loads((tmp_path / "c" / "comparison.json").read_text())["runs"])
    assert done == batches // 8 and os.path.exists(tmp_path / "c" / "comparison.md") == (done > 0)
    record = compare.main(words)
    output = capsys.readouterr().out
    assert f"runs      4, of which {done} are finished" in output and "    continues in epoch " in output
    expected = without_timing(finished[0])
    assert without_timing(record) == {run: history for run, history in expected.items() if run[-1] == 0}


def test_more_seeds_extend_a_comparison_and_another_recipe_is_refused(images, tmp_path):
    one = [*arguments(images, tmp_path / "c", "--fractions", "1", "--repeats", "1"), "--models", "static"]
    first = compare.main([*one, "--seeds", "1"])
    second = compare.main([*one, "--seeds", "2"])
    assert len(first.runs) == 1 and second.runs[0] == first.runs[0] and [run["seed"] for run in second.runs] == [0, 1]
    assert second.results[0]["seeds"] == [0, 1]
    for words, message in (
        ("--lr 0.1", r"--lr 0.1 contradicts the comparison in .*c, which has 0.002"),
        ("--epochs 3", "--epochs 3 contradicts .* which has 2"),
        ("--fractions 1 0.5 --repeats 1 1", "--fractions 1.0 0.5 contradicts .* which has 1.0"),
    ):
        with pytest.raises(OptionError, match=message):
            compare.main([*one, *words.split()])


def test_a_damaged_record_is_named(images, tmp_path):
    for content, message in (
        ('{"format": "something else"}', "expected format"),
        ("null", "NoneType"),
        (json.dumps({"format": FORMAT}), "settings lack fractions, "),
        (json.dumps({"format": FORMAT, "settings": None}), "NoneType"),
        (json.dumps({"format": FORMAT, "runs": [dict(contender="mix", fraction=1, seed=0)]}), "'history' is missing"),
    ):
        (tmp_path / "comparison.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"comparison.json cannot be read as a comparison: .*" + message):
            compare.main(arguments(images, tmp_path))


def test_minutes_set_the_epochs(images, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("comparison.session.choose_epochs", lambda *arguments: asked.append(arguments) or 2)
    words = arguments(images, tmp_path / "c", "--fractions", "1", "--repeats", "1", "--seeds", "1")
    index = words.index("--epochs")
    words[index : index + 2] = ["--minutes", "3"]
    record = compare.main(words)
    output = capsys.readouterr().out
    assert "measured  static: " in output and "measured  mix: " in output and "--epochs 2 " in output
    settings, trials, speeds, training_images, validation_images, spent = asked[0]
    assert (settings.minutes, len(trials), training_images, validation_images) == (3.0, 2, 24, 6)
    for run in record.runs:
        measured, row = speeds[run["contender"]], run["history"][-1]
        assert row["images_per_second"] / 4 < measured.training < 4 * row["images_per_second"]
        assert 0 < measured.start < spent and 0 < measured.save < spent and measured.validation > 0
    again = compare.main(words)  # the epochs are those of the record, nothing is measured
    output = capsys.readouterr().out
    assert "measured" not in output and "epochs    as when the comparison began, whatever --minutes" in output
    assert len(asked) == 1 and again.runs == record.runs


def test_epochs_fill_the_minutes():
    settings = settings_of("--data-path x --fractions 1 0.1 --repeats 1 3 --models mix static --seeds 2 --minutes 10")
    speeds = {"mix": Speed(100, 1000, start=2, save=1), "static": Speed(200, 1000, start=1, save=1)}
    # An epoch: 10 + 1 + 1 and 3 + 1 + 1 seconds of the mix, 5 + 1 + 1 and 1.5 + 1 + 1 of static; each for two seeds.
    epoch, start, spent = 2 * (12 + 5 + 7 + 3.5), 2 * (2 + 2 + 1 + 1), 30
    epochs = choose_epochs(settings, plan_trials(settings), speeds, 1000, 1000, spent)
    assert epochs == 9
    assert epochs * epoch + start <= SAFETY * 600 - spent < (epochs + 1) * epoch + start
    short = dataclasses.replace(settings, minutes=2.0)
    with pytest.raises(OptionError, match=r"--minutes 2 is not enough for two epochs of 8 runs, .* about 2\.8; give"):
        choose_epochs(short, plan_trials(short), speeds, 1000, 1000, spent)


def test_the_core_question_comes_first():
    settings = settings_of("--data-path x --models deit mix static --fractions 1 --seeds 2 --other-seeds 1")
    assert plan_trials(settings) == [
        Trial("mix", 1.0, 0), Trial("static", 1.0, 0), Trial("mix", 1.0, 1), Trial("static", 1.0, 1),
        Trial("deit", 1.0, 0),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def costs():
    return {name: count_cost(contender, 10, 32) for name, contender in CONTENDERS.items()}


def test_the_networks_have_equally_many_parameters(costs):
    middle = statistics.median(cost.parameters for cost in costs.values())
    assert middle > 9e5
    for name, cost in costs.items():
        assert cost.parameters == pytest.approx(middle, rel=0.005), name


def test_multiply_adds_are_counted(costs):
    # DeiT: patches, then 5 layers on 65 tokens: q, k, v and output, attention's two products, the MLP; the classifier.
    tokens, dim, hidden = 65, 128, 440
    layer = tokens * (4 * dim**2 + 2 * dim * hidden) + 2 * tokens**2 * dim
    assert costs["deit"].multiply_adds == 64 * 48 * dim + 5 * layer + 10 * dim
    assert all(costs[name].multiply_adds < costs["mix"].multiply_adds for name in ("dynamic", "static", "light"))


def test_one_recipe_for_all():
    settings = settings_of("--data-path x --device cpu")
    assert settings.models == CORE and settings.fractions == (0.2, 0.02) and settings.minutes <= 15
    recipes = [dataclasses.asdict(training_options(settings, one, 0.2, 3, 7)) for one in CONTENDERS.values()]
    for recipe in recipes:
        del recipe["model"], recipe["model_kwargs"]
        assert recipe == recipes[0]
    assert (recipes[0]["seed"], recipes[0]["epochs"], recipes[0]["train_fraction"]) == (3, 7, 0.2)


def test_a_gpu_suggests_every_network_in_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = settings_of("--data-path x")
    assert settings.models == tuple(CONTENDERS) and settings.fractions == (1.0, 0.1) and settings.repeats == (1, 3)
    assert (settings.amp_dtype, settings.minutes) == ("bfloat16", 9)  # written out: a CPU suggests something else
    assert settings_of("--data-path x --device cpu").amp_dtype == "float32"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--device cpu", "--data-path is needed"),
        ("--data-path x --models mix resnet50", "--models: invalid choice: 'resnet50'"),
        ("--data-path x --models mix mix", "--models names something twice: mix mix"),
        ("--data-path x --fractions 1 0.5 --repeats 1", "--repeats needs one number for each of --fractions 1.0 0.5"),
        ("--data-path x --fractions 2", "--fractions must be more than 0 and at most 1, got 2.0"),
        ("--data-path x --fractions 1 --repeats 0", "--repeats must be 1 or more, got 0"),
        ("--data-path x --minutes nan", "--minutes must be more than 0, got nan"),
        ("--data-path x --minutes inf", "--minutes must be more than 0, got inf"),
        ("--data-path x --seeds 0", "--seeds must be more than 0, got 0"),
        ("--data-path x --epochs 1", "--epochs must be 2 or more"),
        ("--data-path x --epochs 3 --minutes 3", "--minutes sets the epochs, --epochs gives them"),
        ("--data-path x --lr 0", "--lr must be more than 0"),
        ("--data-path x --seed 3", "unknown option --seed; did you mean --seeds"),
    ],
)
def test_wrong_settings_are_named(line, message):
    with pytest.raises(OptionError, match=message):
        settings_of(line)


def test_it_trains_in_one_process(images, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="trains in one process; start it without torchrun"):
        compare.main(arguments(images, tmp_path))


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    text = capsys.readouterr().out
    assert "The same command continues" in text
    assert all(flag(field.name) in text for field in dataclasses.fields(Settings))
