"""`python -m bench.table`: what it measures and leaves out, what it keeps of what a crash ended, files, options."""

import json

import pytest
import torch
from bench_programs import run, usage_lines

from bench import ROOT, table
from bench.names import COMPILED, EAGER, OURS
from bench.problems import fused_mlp, local_aggregation

DEPTHWISE = "depthwise 3×3 forward, 8×14×14, 320 channels"


def test_table_reports_a_wrong_result_without_a_row(monkeypatch, tmp_path, capsys):
    right = local_aggregation.local_aggregation
    monkeypatch.setattr(local_aggregation, "local_aggregation", lambda *arguments: right(*arguments) * 1.01)
    assert table.main(["--quick", "--only", "local_aggregation", "--device", "cpu", "--output", str(tmp_path)]) == 1
    (written,) = tmp_path.glob("*.json")
    report = json.loads(written.read_text())
    assert not report["rows"] and "differs from eager" in report["wrong"][0]
    assert "Wrong results" in capsys.readouterr().out


def test_table_begins_no_problem_after_its_limit(tmp_path):
    options = ["--only", "context_aggregation,local_aggregation", "--device", "cpu", "--limit", "-1"]
    assert table.main([*options, "--output", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("*.json")
    report = json.loads(written.read_text())
    assert not report["rows"] and len(report["notes"]) == 36
    assert report["notes"][0] == "mix forward, 8×7×7, 512 channels, 16 heads: -1 seconds were over"


def test_network_that_does_not_fit_is_measured_on_a_smaller_batch(monkeypatch, tmp_path):
    def needs_room(problem, names, rates, seconds, report):
        if getattr(problem, "batch", 100) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nlong story")
        measured.append(problem.name)

    measured = []
    monkeypatch.setattr(table, "measure_problem", needs_room)
    assert table.main(["--only", "context_aggregation,model", "--device", "cpu", "--output", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("*.json")
    notes = json.loads(written.read_text())["notes"]
    assert measured[0] == "container_light inference, batch 2, 224×224" and len(measured) == 4
    assert notes[0] == "mix forward, 8×7×7, 512 channels, 16 heads: CUDA out of memory."
    assert notes[12:14] == [f"container_light inference, batch {n}, 224×224: CUDA out of memory." for n in (8, 4)]


def test_table_usage_lines_run():
    lines = usage_lines(ROOT / "bench" / "table.py")
    assert [line[:3] for line in lines] == 7 * [["python", "-m", "bench.table"]]
    for line in lines:
        table.parse_options(line[3:])


def test_table_writes_its_files(tmp_path):
    *_, quick = usage_lines(ROOT / "bench" / "table.py")
    result = run(*quick[1:], "--only", "local_aggregation", "--device", "cpu", "--output", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "times faster" in result.stdout and DEPTHWISE in result.stdout

    markdown, data = (next(tmp_path.glob(f"*{suffix}")) for suffix in (".md", ".json"))
    assert f"torch{torch.__version__.replace('+', '_')}" in data.name and "float32" in data.name
    assert markdown.read_text() in result.stdout
    report = json.loads(data.read_text())
    assert {"device", "dtype", "threads", "torch", "commit", "date", "floor"} <= report["conditions"].keys()
    (row,) = report["rows"]
    assert row["ratio"] == pytest.approx(row["theirs_ms"] / row["ours_ms"])
    assert row["percent_of_floor"] == pytest.approx(100 * row["floor_ms"] / row["ours_ms"])


def test_table_refuses_an_unknown_section(capsys):
    with pytest.raises(SystemExit):
        table.parse_options(["--only", "fused_mlp,depthwise"])
    assert (
        "expected some of context_aggregation, local_aggregation, fused_mlp, projection, deformable_attention, block, "
        "model, isotropic, got 'depthwise'" in capsys.readouterr().err
    )


def only_report(folder):
    (written,) = folder.glob("*.json")
    return json.loads(written.read_text())


def quick(folder, *more):
    """A small problem of each of three sections, in no time."""
    sections = "context_aggregation,local_aggregation,fused_mlp"
    options = ["--quick", "--only", sections, "--device", "cpu", "--seconds", "0.01"]
    return [*options, "--output", str(folder), *more]


def test_a_failure_costs_its_problem_alone(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("out of resource: shared memory\nlong story")

    monkeypatch.setattr(local_aggregation, "local_aggregation", fail)
    assert table.main(quick(tmp_path)) == 1
    report = only_report(tmp_path)
    assert report["wrong"] == [f"{DEPTHWISE}: RuntimeError: out of resource: shared memory"]
    assert len({row["problem"] for row in report["rows"]}) == 2


def test_a_wrong_baseline_costs_its_row_alone(monkeypatch, tmp_path):
    """The second way to write eager is wrong: ours is measured against the first."""
    monkeypatch.setattr(fused_mlp, "_linear_mlp", lambda x, *weights: 2 * x)
    assert table.main(quick(tmp_path, "--match", "mlp")) == 1
    report = only_report(tmp_path)
    assert "eager by linear layers: out differs from eager" in report["wrong"][0]
    assert [row["against"] for row in report["rows"]] == ["eager"]


def test_a_lost_gpu_ends_the_process_and_the_next_goes_on(monkeypatch, tmp_path):
    right, check = local_aggregation.local_aggregation, table.check_device

    def illegal(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def lost(device):
        raise table.DeviceLost("an illegal memory access was encountered")

    monkeypatch.setattr(local_aggregation, "local_aggregation", illegal)
    monkeypatch.setattr(table, "check_device", lost)
    assert table.main(quick(tmp_path, "--resume")) == table.DEVICE_LOST
    assert len(only_report(tmp_path)["rows"]) == 1  # the mix
    monkeypatch.setattr(local_aggregation, "local_aggregation", right)
    monkeypatch.setattr(table, "check_device", check)
    assert table.main(quick(tmp_path, "--resume")) == 1
    report = only_report(tmp_path)
    problems = [row["problem"].split()[0] for row in report["rows"]]
    assert sorted(set(problems)) == ["fused_mlp", "mix"] and len(problems) == len(set(problems))
    assert all("depthwise" in message and "illegal" in message for message in report["wrong"])


def test_a_gpu_lost_to_a_wrong_contender_ends_the_process_too(monkeypatch, tmp_path):
    def lost(device):
        raise table.DeviceLost("an illegal memory access was encountered")

    monkeypatch.setattr(fused_mlp, "_linear_mlp", lambda x, *weights: 2 * x)
    monkeypatch.setattr(table, "check_device", lost)
    assert table.main(quick(tmp_path, "--match", "mlp")) == table.DEVICE_LOST
    report = only_report(tmp_path)
    assert not report["rows"] and report["finished"] and ["linear" in m for m in report["wrong"]] == [True, False]


def test_a_crash_is_named_and_not_tried_again(monkeypatch, tmp_path):
    class Crash(BaseException):
        """Stands for the end of the process."""

    def crash(problem, *_):
        if "depthwise" in problem.name:
            raise Crash

    measure_problem = table.measure_problem
    monkeypatch.setattr(table, "measure_problem", lambda *arguments: crash(*arguments) or measure_problem(*arguments))
    with pytest.raises(Crash):
        table.main(quick(tmp_path, "--resume"))
    assert only_report(tmp_path)["begun"] == DEPTHWISE
    assert table.main(quick(tmp_path, "--resume")) == 1
    report = only_report(tmp_path)
    assert report["wrong"] == [f"{DEPTHWISE}: the process ended while it was measured"]
    assert {row["problem"].split()[0] for row in report["rows"]} == {"mix", "fused_mlp"} and report["begun"] is None


def test_what_hangs_is_ended():
    done = run("-c", "import time\nfrom bench import table\nwith table.ended_after(0.2, 'a problem'): time.sleep(60)")
    assert done.returncode == 4 and "a problem: not over after 0 s" in done.stderr


def test_problems_and_contenders_are_chosen_by_options():
    def problems(*options):
        return table.chosen_problems(table.parse_options(["--device", "cuda", *options]))

    named = [problem.name for problem in problems("--only", "local_aggregation", "--match", "5×5")]
    assert len(named) == 8 and all("5×5" in name for name in named)
    assert len(problems("--only", "local_aggregation", "--leave-out", "5×5")) == 16
    assert {problem.batch for problem in problems("--only", "model,isotropic", "--batch", "32")} == {32}
    (mix, *_) = problems("--only", "context_aggregation")
    for options, left_out, kept in (
        (["--no-compile"], {COMPILED}, {OURS, EAGER, "ours on cuda"}),
        (["--compile-alone"], {EAGER, "ours on cuda"}, {OURS, COMPILED}),
        ([], set(), {OURS, EAGER, COMPILED}),
    ):
        names = set(table.chosen_names(table.parse_options(options), mix))
        assert kept <= names and not left_out & names
