"""What the benches compare with: floors by hand and by torch's count, targets, sizes of the problems."""

import pytest
import torch

from bench import roofline, targets
from bench.problems import sections
from bench.problems.columns import ColumnProblem
from bench.problems.networks import ModelProblem
from bench.targets import Target

H100 = "NVIDIA H100 80GB HBM3"


def test_costs_by_hand():
    # (128, 7, 7, 512) in bfloat16: q, k, v, y are 128·49·512 elements of 2 bytes each.
    assert roofline.mix(128, 49, 512, 2, False) == roofline.Cost(bytes=25_690_112, flops=629_407_744)
    # Backward: seven more tensors, five more products.
    assert roofline.mix(128, 49, 512, 2, True) == roofline.Cost(bytes=70_647_808, flops=2_202_927_104)
    # Two pixels, three channels, 5×5, float32: x and y; then x, grad_y and grad_x.
    assert roofline.depthwise(1, 2, 3, 5, 4, False) == roofline.Cost(bytes=48, flops=300)
    assert roofline.depthwise(1, 2, 3, 5, 4, True) == roofline.Cost(bytes=120, flops=900)
    # Ten tokens, 4 to 8 channels, 2 bytes: x, residual, y; then x and grad_y in, grad_x out.
    assert roofline.projection(10, 4, 8, 2, False, residual=True) == roofline.Cost(bytes=400, flops=640)
    assert roofline.projection(10, 4, 8, 2, True) == roofline.Cost(bytes=560, flops=1920)
    assert roofline.mlp(10, 4, 8, 2, False) == roofline.Cost(bytes=160, flops=1280)
    assert roofline.mlp(10, 4, 8, 2, True) == roofline.Cost(bytes=400, flops=4480)
    assert roofline.adamw(5) == roofline.Cost(bytes=140, flops=0)


def test_floor_is_the_larger_of_moving_and_computing():
    rates = roofline.rates(H100, "cuda", torch.bfloat16)
    memory_bound, compute_bound = roofline.Cost(3_000_000_000, 8_000_000), roofline.Cost(3_000_000, 1_600_000_000_000)
    assert rates.floor_ms([memory_bound]) == pytest.approx(1.0)
    assert rates.floor_ms([compute_bound]) == pytest.approx(2.0)
    assert rates.floor_ms([memory_bound, compute_bound]) == pytest.approx(3.0)
    # 25.7 MB at 3 TB/s.
    assert rates.floor_ms([roofline.mix(128, 49, 512, 2, False)]) == pytest.approx(8.5634e-3, rel=1e-4)


def test_rates_of_an_unknown_device_are_measured():
    rates = roofline.rates("some processor", "cpu", torch.float32)
    assert rates.source.startswith("measured in this run")
    # Any machine of this century, in bytes and FLOPs a second.
    assert 1e8 < rates.bandwidth < 1e13 and 1e8 < rates.flops < 1e14


@pytest.mark.parametrize(("model", "multiply_adds"), [("container_light", 3.85e9), ("container", 8.95e9)])
def test_model_costs_are_torchs_count(model, multiply_adds):
    cost = roofline.total(ModelProblem("cpu", False, model, 1, 224).kernels)
    assert cost.flops / 2 == pytest.approx(multiply_adds, rel=0.01)


@pytest.mark.parametrize(("model", "multiply_adds"), [("deit_small", 4.60e9), ("mixer", 12.60e9)])
def test_column_costs_are_torchs_count(model, multiply_adds):
    cost = roofline.total(ColumnProblem("cpu", False, model, 1, 224).kernels)
    assert cost.flops / 2 == pytest.approx(multiply_adds, rel=0.01)


def test_every_target_has_its_row():
    for device, wanted in (("cuda", targets.GPU), ("cpu", targets.CPU)):
        rows = {(p.kind, baseline) for p in sections.all_problems(device) for baseline in p.baselines}
        assert wanted.keys() <= rows
    assert targets.target("mix forward, N ≤ 256", "eager", "cpu").ratio == 2
    assert targets.target("mix forward, N ≤ 256", "eager", "cuda").ratio == 5
    assert targets.target("depthwise forward", "eager", "cpu") is None


def test_target_is_met_as_a_whole():
    target = Target(3, of_floor=0.8, memory=0.5)
    assert str(target) == "≥ 3×, ≥ 80% of floor, ≤ 0.5× memory"
    assert target.met(3.0, 0.8, 0.5)
    assert not target.met(2.99, 0.9, 0.4)
    assert not target.met(4.0, 0.79, 0.4)
    assert not target.met(4.0, 0.9, 0.51)
    assert Target(3).met(3.1, 0.1, None)


def test_cpu_gets_a_sixteenth_of_the_batch():
    names = [problem.name for problem in sections.all_problems("cpu", ["mix"])]
    assert names[0] == "mix forward, 8×7×7, 512 channels, 16 heads"
    assert names[5] == "mix forward, 1×50×84, 320 channels, 10 heads"
    assert len(names) == len(set(names)) == 12
    assert sections.all_problems("cuda", ["mix"])[0].name == "mix forward, 128×7×7, 512 channels, 16 heads"
