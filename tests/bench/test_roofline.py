"""Floors: costs by hand and by torch's count, rates of a device."""

import pytest
import torch

from bench import roofline
from bench.problems.isotropic import IsotropicProblem
from bench.problems.networks import ModelProblem

H100 = "NVIDIA H100 80GB HBM3"


def test_costs_by_hand():
    # (128, 7, 7, 512) in bfloat16: q, k, v, y are 128·49·512 elements of 2 bytes each.
    assert roofline.context_aggregation(128, 49, 512, 2, False) == roofline.Cost(bytes=25_690_112, flops=629_407_744)
    # Backward: seven more tensors, five more products.
    assert roofline.context_aggregation(128, 49, 512, 2, True) == roofline.Cost(bytes=70_647_808, flops=2_202_927_104)
    # Two pixels, three channels, 5×5, float32: x and y; then x, grad_y and grad_x.
    assert roofline.local_aggregation(1, 2, 3, 5, 4, False) == roofline.Cost(bytes=48, flops=300)
    assert roofline.local_aggregation(1, 2, 3, 5, 4, True) == roofline.Cost(bytes=120, flops=900)
    # Ten tokens, 4 to 8 channels, 2 bytes: x, residual, y; then x and grad_y in, grad_x out.
    assert roofline.projection(10, 4, 8, 2, False, residual=True) == roofline.Cost(bytes=400, flops=640)
    assert roofline.projection(10, 4, 8, 2, True) == roofline.Cost(bytes=560, flops=1920)
    assert roofline.fused_mlp(10, 4, 8, 2, False) == roofline.Cost(bytes=160, flops=1280)
    assert roofline.fused_mlp(10, 4, 8, 2, True) == roofline.Cost(bytes=400, flops=4480)
    # One image of 10 pixels, 3 queries, 2 heads of 4 channels, 5 points, 2 bytes: value and result, 12 bytes a point.
    assert roofline.deformable_attention(1, 10, 3, 2, 4, 5, 2, False) == roofline.Cost(bytes=160 + 48 + 360, flops=960)
    assert roofline.deformable_attention(1, 10, 3, 2, 4, 5, 2, True) == roofline.Cost(bytes=480 + 96 + 1080, flops=2880)
    assert roofline.adamw(5) == roofline.Cost(bytes=140, flops=0)


def test_floor_is_the_larger_of_moving_and_computing():
    rates = roofline.rates(H100, "cuda", torch.bfloat16)
    memory_bound, compute_bound = roofline.Cost(3_000_000_000, 8_000_000), roofline.Cost(3_000_000, 1_600_000_000_000)
    assert rates.floor_ms([memory_bound]) == pytest.approx(1.0)
    assert rates.floor_ms([compute_bound]) == pytest.approx(2.0)
    assert rates.floor_ms([memory_bound, compute_bound]) == pytest.approx(3.0)
    # 25.7 MB at 3 TB/s.
    assert rates.floor_ms([roofline.context_aggregation(128, 49, 512, 2, False)]) == pytest.approx(8.5634e-3, rel=1e-4)


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
    cost = roofline.total(IsotropicProblem("cpu", False, model, 1, 224).kernels)
    assert cost.flops / 2 == pytest.approx(multiply_adds, rel=0.01)
