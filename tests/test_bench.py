"""The benchmarks: their arithmetic, the gate in front of the clock, the baseline network, the commands as written."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).parents[1]
GOLDEN_NAMES = ROOT / "tests" / "golden" / "container_light_official_names.json"


@pytest.fixture(autouse=True)
def _bench_importable(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def run(*command):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=300
    )


def test_contender_rotates_its_inputs():
    from timing import Contender

    contender = Contender(lambda inputs: inputs, ["first", "second"])
    assert contender.rounds == 2
    assert [contender() for _ in range(3)] == ["first", "second", "first"]


@pytest.mark.parametrize("threads", [1, 2])
def test_measure_tells_fast_from_slow(monkeypatch, threads):
    """By the wall, or where one thread does all the work by its own time, in which sleeping takes none."""
    from timing import Contender, measure

    def spend(seconds):
        time.sleep(0.03)
        start = time.thread_time()
        while time.thread_time() - start < seconds:
            pass

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    fast, slow = (Contender(spend, [seconds]) for seconds in (1e-3, 1e-2))
    result = measure({"ours": fast, "eager": slow}, "cpu", 0.1)
    assert result.milliseconds.keys() == {"ours", "eager"}
    asleep = 0 if threads == 1 else 30
    assert asleep + 1 <= result.milliseconds["ours"] < result.milliseconds["eager"]
    assert result.milliseconds["eager"] >= asleep + 10
    assert threads > 1 or result.milliseconds["ours"] < 10
    assert result.noise >= 0 and not result.cuda_graph


class RecordedGraph:
    def replay(self):
        """Stands for a graph's replay."""


@pytest.mark.parametrize(
    ("rounds", "capturable", "graphed"), [((4, 4), True, True), ((4, 4), False, False), ((4, 1), True, False)]
)
def test_gpu_times_graphs_for_all_or_for_none(monkeypatch, rounds, capturable, graphed):
    """A graph holds a call for every input set; without graphs one call is timed."""
    import timing

    def do_bench(function, warmup, rep, return_mode):
        assert return_mode == "median" and rep > warmup > 0
        return 8.0 if getattr(function, "__name__", None) == "replay" else 2.5

    monkeypatch.setattr("triton.testing.do_bench", do_bench)
    monkeypatch.setattr(timing, "_capture", lambda all_: dict.fromkeys(all_, RecordedGraph()) if capturable else None)
    ours, eager = (timing.Contender(lambda _: None, [None] * n) for n in rounds)
    result = timing.measure({"ours": ours, "eager": eager}, "cuda", 1.0)
    expected = 2.0 if graphed else 2.5
    assert result == timing.Measurement({"ours": expected, "eager": expected}, noise=0.0, cuda_graph=graphed)


def tiny_problems():
    from column_problems import ColumnProblem
    from network_problems import BlockProblem, ModelProblem
    from op_problems import DepthwiseProblem, MixProblem
    from token_problems import MlpProblem, ProjectionProblem

    from container_kernels.testing import MixCase

    return [
        MixProblem("cpu", True, MixCase()),
        DepthwiseProblem("cpu", True, 2, 5, 6, 8, 5),
        BlockProblem("cpu", True, 1, True, 2, 6),
        BlockProblem("cpu", False, 1, False, 2, 6),
        ModelProblem("cpu", False, "container", 2, 64),
        ModelProblem("cpu", True, "container_light", 4, 64),
        ColumnProblem("cpu", False, "mixer", 1, 32),
        ColumnProblem("cpu", True, "deit_small", 2, 32),
        MlpProblem("cpu", True, 2, 30, 16, 4),
        ProjectionProblem("cpu", True, 2, 30, 16, 16),
        ProjectionProblem("cpu", False, 2, 30, 16, 48),
    ]


@pytest.mark.parametrize("index", range(11))
def test_ours_passes_the_gate(index):
    from contenders import COMPILED, EAGER, checked_contenders, contender_names

    problem = tiny_problems()[index]
    names = [name for name in contender_names(problem) if name != COMPILED]
    contenders, unavailable = checked_contenders(problem, names)
    assert list(contenders) == names and not unavailable
    # Training compares gradients too, or it would prove nothing about the backward.
    compared = problem.outputs(EAGER, contenders[EAGER]())
    assert any("gradient" in name for name in compared) == ("forward +" in problem.kind or "step" in problem.kind)


def test_gate_stops_a_wrong_op(monkeypatch):
    import op_problems
    from contenders import OURS, checked_contenders

    right = op_problems.local_aggregation

    def loses_the_first_column(x, weight, bias):
        out = right(x, weight, bias)
        return torch.cat([out[:, :, :1] * 0, out[:, :, 1:]], dim=2)

    monkeypatch.setattr(op_problems, "local_aggregation", loses_the_first_column)
    with pytest.raises(AssertionError, match=r"depthwise 5×5 .*: ours: .* differs from eager by .*, allowed 2e-05"):
        checked_contenders(tiny_problems()[1], [OURS])


def test_gate_stops_a_wrong_gradient(monkeypatch):
    import op_problems
    from contenders import OURS, checked_contenders

    right = op_problems.context_aggregation

    def query_without_gradient(q, *arguments, **keywords):
        return right(q.detach() * 0.5 + q * 0.5, *arguments, **keywords)  # right output, half the gradient

    monkeypatch.setattr(op_problems, "context_aggregation", query_without_gradient)
    with pytest.raises(AssertionError, match=r"ours: gradient of q differs from eager by 5\.0e-01"):
        checked_contenders(tiny_problems()[0], [OURS])


def test_gate_stops_a_wrong_network(monkeypatch):
    import network_problems
    from contenders import OURS, checked_contenders

    problem = tiny_problems()[4]
    monkeypatch.setattr(network_problems, "timm", timm_without_local_terms())
    with pytest.raises(AssertionError, match=r"container inference.*: ours: out differs from eager"):
        checked_contenders(problem, [OURS])


def test_inference_of_ours_is_that_of_the_fused_network():
    from contenders import NOT_FUSED, OURS, contender_names

    inference, training = tiny_problems()[4:6]
    assert NOT_FUSED in contender_names(inference) and NOT_FUSED not in contender_names(training)
    fused, plain = (set(inference.network(name).state_dict()) for name in (OURS, NOT_FUSED))
    assert plain == set(timm.create_model("container").state_dict()) and not fused & {"stages.0.blocks.0.norm1.weight"}


def test_steps_of_the_ablation_agree(capsys):
    import ablation

    threads = torch.get_num_threads()
    try:
        assert ablation.main(["--device", "cpu", "--batch", "1", "--size", "64", "--seconds", "0.1"]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("the release", "+ "))]
    assert len(lines) == len(ablation.STEPS) == 5
    assert lines[0].split()[-2:] == ["1.00", "1.00"]


def test_a_wrong_step_of_the_ablation_is_an_error(monkeypatch):
    import ablation
    from network_problems import ModelProblem

    monkeypatch.setattr(ablation, "fused_mlp", lambda x, *weights: x)
    with pytest.raises(AssertionError, match=r"fused MLP: differs from eager by"):
        ablation.contenders(ModelProblem("cpu", False, "container_light", 1, 64))


def timm_without_local_terms():
    """A stand-in for timm whose network forgets a filter."""

    class Forgetful:
        @staticmethod
        def create_model(name):
            model = timm.create_model(name)

            def forget(module, *_):
                module.local_weight.data.zero_()

            model.stages[3].blocks[0].aggregation.register_forward_pre_hook(forget)
            return model

    return Forgetful


def test_baseline_that_cannot_run_is_named_with_its_reason(monkeypatch):
    from contenders import COMPILED, EAGER, OURS, checked_contenders

    def no_compiler(*_, **__):
        raise RuntimeError("no C++ compiler found\nlong story")

    monkeypatch.setattr(torch, "compile", no_compiler)
    contenders, unavailable = checked_contenders(tiny_problems()[1], [OURS, EAGER, COMPILED])
    assert list(contenders) == [OURS, EAGER]
    assert unavailable == {COMPILED: "RuntimeError: no C++ compiler found"}


def test_a_backend_of_ours_may_refuse_but_not_fail(monkeypatch):
    import op_problems
    from contenders import checked_contenders

    problem = tiny_problems()[1]
    contenders, unavailable = checked_contenders(problem, ["ours on cuda"])
    assert not contenders and "backend 'cuda' cannot serve this call" in unavailable["ours on cuda"]

    def fail(*_, **__):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(op_problems, "local_aggregation", fail)
    with pytest.raises(AssertionError, match=r"depthwise 5×5 .*: ours on cuda: an illegal memory access"):
        checked_contenders(problem, ["ours on cuda"])


def test_baseline_network_has_the_released_names():
    from released_network import ReleasedNetwork

    with torch.device("meta"):
        network = ReleasedNetwork()
    assert {n: list(t.shape) for n, t in network.state_dict().items()} == json.loads(GOLDEN_NAMES.read_text())


def test_baseline_network_computes_what_the_release_does(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "models")
    from released import golden, golden_input, released_state_dict
    from released_network import ReleasedNetwork

    baseline, ours = ReleasedNetwork().eval(), timm.create_model("container_light").eval()
    baseline.load_state_dict(released_state_dict())
    ours.load_state_dict(baseline.state_dict())
    baseline.to(memory_format=torch.channels_last)
    image = golden_input().to(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = baseline(image)
        assert relative_error(logits, torch.from_numpy(golden()["logits"])) < 2e-5
        assert relative_error(ours(image), logits) < 2e-5


def test_table_reports_a_wrong_result_without_a_row(monkeypatch, tmp_path, capsys):
    import op_problems
    import table

    right = op_problems.local_aggregation
    monkeypatch.setattr(op_problems, "local_aggregation", lambda *arguments: right(*arguments) * 1.01)
    assert table.main(["--quick", "--only", "depthwise", "--device", "cpu", "--output", str(tmp_path)]) == 1
    (written,) = tmp_path.glob("*.json")
    report = json.loads(written.read_text())
    assert not report["rows"] and "differs from eager" in report["wrong"][0]
    assert "Wrong results" in capsys.readouterr().out


def test_table_begins_no_problem_after_its_limit(tmp_path):
    import table

    options = ["--only", "mix,depthwise", "--device", "cpu", "--limit", "-1", "--output", str(tmp_path)]
    assert table.main(options) == 0
    (written,) = tmp_path.glob("*.json")
    report = json.loads(written.read_text())
    assert not report["rows"] and len(report["notes"]) == 36
    assert report["notes"][0] == "mix forward, 8×7×7, 512 channels, 16 heads: -1 seconds were over"


def test_network_that_does_not_fit_is_measured_on_a_smaller_batch(monkeypatch, tmp_path):
    import table

    def needs_room(problem, names, rates, seconds, report):
        if getattr(problem, "batch", 100) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nlong story")
        measured.append(problem.name)

    measured = []
    monkeypatch.setattr(table, "measure_problem", needs_room)
    assert table.main(["--only", "mix,model", "--device", "cpu", "--output", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("*.json")
    notes = json.loads(written.read_text())["notes"]
    assert measured[0] == "container_light inference, batch 2, 224×224" and len(measured) == 4
    assert notes[0] == "mix forward, 8×7×7, 512 channels, 16 heads: CUDA out of memory."
    assert notes[12:14] == [f"container_light inference, batch {n}, 224×224: CUDA out of memory." for n in (8, 4)]


def usage_lines(path):
    """The commands that a module's docstring tells the reader to type."""
    commands = re.findall(r"^    (\w+ bench\S*(?: --\S+(?: [a-z\d,]+)?)*)", path.read_text(), re.MULTILINE)
    return [shlex.split(command) for command in commands]


def test_table_usage_lines_run():
    import table

    lines = usage_lines(ROOT / "bench" / "table.py")
    assert [line[:2] for line in lines] == 6 * [["python", "bench/table.py"]]
    for line in lines:
        table.parse_options(line[2:])


def test_table_writes_its_files(tmp_path):
    *_, quick = usage_lines(ROOT / "bench" / "table.py")
    result = run(*quick[1:], "--only", "depthwise", "--device", "cpu", "--output", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "times faster" in result.stdout and "depthwise 3×3 forward, 8×14×14, 320 channels" in result.stdout

    markdown, data = (next(tmp_path.glob(f"*{suffix}")) for suffix in (".md", ".json"))
    assert f"torch{torch.__version__.replace('+', '_')}" in data.name and "float32" in data.name
    assert markdown.read_text() in result.stdout
    report = json.loads(data.read_text())
    assert {"device", "dtype", "threads", "torch", "commit", "date", "floor"} <= report["conditions"].keys()
    (row,) = report["rows"]
    assert row["ratio"] == pytest.approx(row["theirs_ms"] / row["ours_ms"])
    assert row["percent_of_floor"] == pytest.approx(100 * row["floor_ms"] / row["ours_ms"])


def test_table_refuses_an_unknown_section(capsys):
    import table

    with pytest.raises(SystemExit):
        table.parse_options(["--only", "mix,depthwize"])
    assert (
        "expected some of mix, depthwise, mlp, projection, block, model, column, got 'depthwize'"
        in capsys.readouterr().err
    )


def test_pytest_command_measures():
    """As people type it: the project's --benchmark-disable must not stand in its way."""
    commands = usage_lines(ROOT / "bench" / "conftest.py")
    assert ["pytest", "bench", "--benchmark-only"] in commands and ["pytest", "bench"] in commands
    result = run("-m", "pytest", "bench", "--benchmark-only", "-k", "depthwise_3x3_forward-8x14x14-320_channels-eager")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout and "% of floor" in result.stdout and "Median" in result.stdout
