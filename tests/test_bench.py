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
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def _bench_importable(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def run(*command):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=300
    )


def test_costs_by_hand():
    import floors

    # (128, 7, 7, 512) in bfloat16: q, k, v, y are 128·49·512 elements of 2 bytes each.
    assert floors.mix(128, 49, 512, 2, False) == floors.Cost(bytes=25_690_112, flops=629_407_744)
    # Backward: seven more tensors, five more products.
    assert floors.mix(128, 49, 512, 2, True) == floors.Cost(bytes=70_647_808, flops=2_202_927_104)
    # Two pixels, three channels, 5×5, float32: x and y; then x, grad_y and grad_x.
    assert floors.depthwise(1, 2, 3, 5, 4, False) == floors.Cost(bytes=48, flops=300)
    assert floors.depthwise(1, 2, 3, 5, 4, True) == floors.Cost(bytes=120, flops=900)
    # Ten tokens, 4 to 8 channels, 2 bytes: x, residual, y; then x and grad_y in, grad_x out.
    assert floors.projection(10, 4, 8, 2, False, residual=True) == floors.Cost(bytes=400, flops=640)
    assert floors.projection(10, 4, 8, 2, True) == floors.Cost(bytes=560, flops=1920)
    assert floors.mlp(10, 4, 2, 2, False) == floors.Cost(bytes=160, flops=1280)
    assert floors.mlp(10, 4, 2, 2, True) == floors.Cost(bytes=400, flops=4480)
    assert floors.adamw(5) == floors.Cost(bytes=140, flops=0)


def test_floor_is_the_larger_of_moving_and_computing():
    import floors

    rates = floors.rates(H100, "cuda", torch.bfloat16)
    memory_bound, compute_bound = floors.Cost(3_000_000_000, 8_000_000), floors.Cost(3_000_000, 1_600_000_000_000)
    assert rates.floor_ms([memory_bound]) == pytest.approx(1.0)
    assert rates.floor_ms([compute_bound]) == pytest.approx(2.0)
    assert rates.floor_ms([memory_bound, compute_bound]) == pytest.approx(3.0)
    # 25.7 MB at 3 TB/s.
    assert rates.floor_ms([floors.mix(128, 49, 512, 2, False)]) == pytest.approx(8.5634e-3, rel=1e-4)


def test_rates_of_an_unknown_device_are_measured():
    import floors

    rates = floors.rates("some processor", "cpu", torch.float32)
    assert rates.source.startswith("measured in this run")
    # Any machine of this century, in bytes and FLOPs a second.
    assert 1e8 < rates.bandwidth < 1e13 and 1e8 < rates.flops < 1e14


@pytest.mark.parametrize(("model", "multiply_adds"), [("container_light", 3.85e9), ("container", 8.95e9)])
def test_model_costs_are_torchs_count(model, multiply_adds):
    import floors
    from network_problems import ModelProblem

    cost = floors.total(ModelProblem("cpu", False, model, 1, 224).kernels)
    assert cost.flops / 2 == pytest.approx(multiply_adds, rel=0.01)


def test_every_target_has_its_row():
    import cases
    import targets

    for device, wanted in (("cuda", targets.GPU), ("cpu", targets.CPU)):
        rows = {(p.kind, baseline) for p in cases.all_problems(device) for baseline in p.baselines}
        assert wanted.keys() <= rows
    assert targets.target("mix forward, N ≤ 256", "eager", "cpu").ratio == 2
    assert targets.target("mix forward, N ≤ 256", "eager", "cuda").ratio == 5
    assert targets.target("depthwise forward", "eager", "cpu") is None


def test_target_is_met_as_a_whole():
    from targets import Target

    target = Target(3, of_floor=0.8, memory=0.5)
    assert str(target) == "≥ 3×, ≥ 80% of floor, ≤ 0.5× memory"
    assert target.met(3.0, 0.8, 0.5)
    assert not target.met(2.99, 0.9, 0.4)
    assert not target.met(4.0, 0.79, 0.4)
    assert not target.met(4.0, 0.9, 0.51)
    assert Target(3).met(3.1, 0.1, None)


def test_cpu_gets_a_sixteenth_of_the_batch():
    import cases

    names = [problem.name for problem in cases.all_problems("cpu", ["mix"])]
    assert names[0] == "mix forward, 8×7×7, 512 channels, 16 heads"
    assert names[5] == "mix forward, 1×50×84, 320 channels, 10 heads"
    assert len(names) == len(set(names)) == 12
    assert cases.all_problems("cuda", ["mix"])[0].name == "mix forward, 128×7×7, 512 channels, 16 heads"


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
        MlpProblem("cpu", True, 2, 30, 16, 4),
        ProjectionProblem("cpu", True, 2, 30, 16, 16),
        ProjectionProblem("cpu", False, 2, 30, 16, 48),
    ]


@pytest.mark.parametrize("index", range(9))
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
    assert "expected some of mix, depthwise, mlp, projection, block, model, got 'depthwize'" in capsys.readouterr().err


def test_pytest_command_measures():
    """As people type it: the project's --benchmark-disable must not stand in its way."""
    commands = usage_lines(ROOT / "bench" / "conftest.py")
    assert ["pytest", "bench", "--benchmark-only"] in commands and ["pytest", "bench"] in commands
    result = run("-m", "pytest", "bench", "--benchmark-only", "-k", "depthwise_3x3_forward-8x14x14-320_channels-eager")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout and "% of floor" in result.stdout and "Median" in result.stdout
