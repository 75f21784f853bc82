"""The profile of a step: where in the network each operator ran, how long it took, tables and figure."""

import json

import pytest
import torch

from bench.problems.networks import ModelProblem
from bench.profiling import step_figure, step_profile
from bench.profiling.network_parts import PARTS
from bench.profiling.simulated_gpu import SimulatedProblem
from bench.profiling.step_profile import counted
from bench.profiling.step_recorder import profiled_milliseconds, record_step, time_operators


def tiny(training, name):
    problem = ModelProblem("cpu", training, "container_light", 2, 32)
    network = problem.network(name)
    return network, problem.calls(network, network)


@pytest.mark.parametrize("name", ["ours", "eager"])
def test_every_part_has_its_operators(name):
    """Where each part of a training step runs; the backward visits the parts that the forward did."""
    network, calls = tiny(True, name)
    operators = record_step(calls, network).operators
    forward = {(o.place.stage, o.place.part) for o in operators if o.place.direction == "forward"}
    backward = {(o.place.stage, o.place.part) for o in operators if o.place.direction == "backward"}
    assert {part for _, part in forward | backward} | {"optimizer"} == set(PARTS)
    blocks = ("position embedding", "norm", "projection", "aggregation", "MLP")
    for stage in ("stage 1", "stage 2", "stage 3", "stage 4"):
        for part in ("patch embedding", *blocks):
            assert (stage, part) in forward and (stage, part) in backward
    flops = {d: sum(o.cost.flops for o in operators if o.place.direction == d) for d in ("forward", "backward")}
    assert 1.9 < flops["backward"] / flops["forward"] < 2.6  # recomputed hidden layers are the most


@pytest.mark.parametrize("name", ["ours", "eager"])
def test_products_are_found_where_they_are(name):
    """The FLOPs of each part of inference, by hand."""
    network, calls = tiny(False, name)
    by_part = {}
    for operator in record_step(calls, network).operators:
        by_part[operator.place.part] = by_part.get(operator.place.part, 0) + operator.cost.flops
    tokens = {64: 64, 128: 16, 320: 4, 512: 1}
    depths, ratios = (3, 4, 8, 3), (8, 8, 4, 4)
    stages = list(zip(tokens.items(), depths, ratios, strict=True))
    mlp = sum(2 * d * 2 * 2 * n * c * c * r for (c, n), d, r in stages)
    projections = sum(d * 2 * 2 * n * c * c * (4 if c == 512 else 2) for (c, n), d, r in stages)
    assert by_part["MLP"] == mlp
    assert by_part["projection"] == projections
    assert by_part["position embedding"] == sum(d * 2 * 2 * n * c * 9 for (c, n), d, r in stages)


def test_a_simulated_gpu_runs_as_one(monkeypatch):
    """Nothing is computed; autocast makes float32 of layer norms, which keeps eager's residual stream in float32."""
    eager, ours = (counted(SimulatedProblem("cpu", True, "container_light", 128, 224), n, n) for n in ("eager", "ours"))
    assert eager.synchronizations == ours.synchronizations == 0
    assert ours.kept_bytes < 0.5 * eager.kept_bytes and ours.peak_bytes < 0.5 * eager.peak_bytes
    assert sum(row.bytes for row in ours.rows) < sum(row.bytes for row in eager.rows)
    assert (eager.dtype, eager.batch) == ("bfloat16", 128)


def test_times_are_of_the_operators_listed():
    network, calls = tiny(False, "ours")
    calls()
    operators = record_step(calls, network).operators
    by_clock, by_profiler = time_operators(calls, network, "cpu", 2), profiled_milliseconds(calls, network)
    assert len(by_clock) == len(by_profiler) == len(operators)
    assert min(by_clock) >= 0 and min(by_profiler) > 0
    # The larger part of the time is where the larger part of the work is.
    assert sum(by_clock) > 0 and sum(by_profiler) > 0


def test_profile_is_kept_and_compared(tmp_path, capsys):
    kept = tmp_path / "kept.json"
    options = ["--models", "container_light", "--label", "now", "--limit", "0", "--output", str(kept)]
    assert step_profile.main(options) == 0
    report = json.loads(kept.read_text())
    assert report["profiles"] == []
    assert report["conditions"]["now"]["torch"] == torch.__version__
    one = step_profile.Row("stage 1", "MLP", "forward", 2, 3_000_000, 4_000_000_000, 1, 0.5)
    for label, peak in (("before", 2e6), ("after", 1e6)):
        rows = [one, step_profile.Row("step", "loss", "backward", 1, 10, 0, 0, 0.5)]
        profile = step_profile.Profile(label, "container", True, "a GPU", "bfloat16", 1, rows, int(peak), 0, 0)
        step_profile.save({"conditions": {}, "profiles": [profile]}, tmp_path / f"{label}.json")
    capsys.readouterr()
    assert step_profile.main(["--compare", str(tmp_path / "before.json"), str(tmp_path / "after.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (mlp,) = (line.split() for line in lines if " MLP |" in line)
    assert mlp[1:3] == ["stage", "1"] and mlp.count("50.0") == 2 and mlp.count("0.5") == 2
    assert "- after: peak 1 MB" in "\n".join(lines)


def test_figure_has_a_panel_for_every_measurement(tmp_path, monkeypatch):
    """Of the results in the repository, which are what the figure in the docs is drawn from."""
    from matplotlib import axes

    drawn = {}
    panel = step_figure._draw_panel

    def draw(where, bars, measured, colors):
        panel(where, bars, measured, colors)
        drawn[where.get_title().split("\n")[0]] = [text.get_text().split("\n") for text in where.texts]
        assert isinstance(where, axes.Axes)

    monkeypatch.setattr(step_figure, "_draw_panel", draw)
    figure = tmp_path / "figure.png"
    assert step_figure.main(["--output", str(figure)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size < 200_000
    for what in ("Inference", "Training step"):
        for how in ("measured", "PREDICTED from bytes and FLOPs"):
            plain, before, after = drawn[f"{what}, {how}"]
            assert len(plain) == 1 and "as fast" in before[1] and "as fast" in after[1]
