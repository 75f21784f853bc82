"""Loss, centre, head, schedules and teacher of DINO, against independent and scalar code."""

import copy
import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from trial_runs import PROGRAMS  # noqa: F401  makes `tasks` importable

from tasks.dino.branches import Branch, Distillation  # isort: skip
from tasks.dino.diagnosis import Targets, advice, measure_targets
from tasks.dino.head import DINOHead
from tasks.dino.loss import distillation_loss, entropy, targets_of
from tasks.dino.options import DinoOptions
from tasks.dino.schedules import values_at
from training.distributed import World

ONE = World(rank=0, size=1, device=torch.device("cpu"), control=None)


def softmax(values):
    peak = max(values)
    exps = [math.exp(value - peak) for value in values]
    return [value / sum(exps) for value in exps]


@pytest.mark.parametrize("views", [2, 5])
def test_loss_is_the_mean_over_pairs_of_different_views(views):
    torch.manual_seed(views)
    learned, taught = torch.randn(views, 3, 7), torch.randn(2, 3, 7)
    centre = torch.randn(7)
    total, pairs = 0.0, 0
    for t in range(2):
        for s in range(views):
            if s == t:
                continue
            pairs += 1
            for image in range(3):
                q = softmax([(taught[t, image, k].item() - centre[k].item()) / 0.04 for k in range(7)])
                p = softmax([learned[s, image, k].item() / 0.1 for k in range(7)])
                total -= sum(a * math.log(b) for a, b in zip(q, p, strict=True)) / 3
    found = distillation_loss(learned, targets_of(taught, centre, 0.04), 0.1)
    assert found.item() == pytest.approx(total / pairs, rel=1e-5)


def test_targets_are_float32_whatever_the_logits_are():
    logits = torch.randn(2, 4, 9).bfloat16()
    assert targets_of(logits, torch.zeros(9), 0.04).dtype == torch.float32


def test_entropy():
    assert entropy(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])).tolist() == pytest.approx([math.log(2), 0.0])


@pytest.mark.parametrize("norm_last_layer", [True, False])
@pytest.mark.parametrize("use_bn", [False, True])
def test_head_is_an_mlp_and_products_of_unit_vectors(norm_last_layer, use_bn):
    head = DINOHead(6, 11, 8, 5, use_bn, norm_last_layer).double()
    if not norm_last_layer:
        torch.nn.init.uniform_(head.prototype_norms)
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = x
    for layer in head.mlp:
        expected = layer(expected)
    expected = expected / expected.norm(dim=1, keepdim=True)
    weight = head.prototypes / head.prototypes.norm(dim=1, keepdim=True)
    if not norm_last_layer:
        weight = weight * head.prototype_norms
    torch.testing.assert_close(head(x), expected @ weight.T)
    torch.testing.assert_close(copy.deepcopy(head)(x), head(x))
    assert sum(isinstance(layer, torch.nn.BatchNorm1d) for layer in head.mlp) == 2 * use_bn
    assert len(head.last_layer()) == (1 if norm_last_layer else 2)


class Pool(torch.nn.Module):
    """Mean pixels through a layer and a batch norm, and the shapes it was called with."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.calls = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), []

    def forward(self, images):
        self.calls.append(tuple(images.shape))
        return self.norm(self.layer(images.mean((2, 3))))


def pair(out_dim=6):
    torch.manual_seed(0)
    branches = [Branch(Pool(), DINOHead(4, out_dim, 5, 3)) for _ in range(2)]
    return Distillation(*branches, 2, out_dim)


def test_one_forward_per_resolution_and_no_gradient_for_the_teacher():
    model = pair()
    views = [torch.randn(2, 3, size, size) for size in (8, 8, 4, 4, 4)]
    learned, taught = model(views)
    assert learned.shape == (5, 2, 6) and taught.shape == (2, 2, 6)
    assert model.student.backbone.calls == [(4, 3, 8, 8), (6, 3, 4, 4)]
    assert model.teacher.backbone.calls == [(4, 3, 8, 8)]
    learned.sum().backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.student.parameters())
    assert model.teacher.backbone.norm.num_batches_tracked == 1  # its statistics come from global views


def test_the_teacher_is_the_average_of_parameters_alone():
    model = pair()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter))
        model.student.backbone.norm.running_mean.fill_(5.0)
    before = copy.deepcopy(model.teacher)
    model.update_teacher(0.9)
    for name, parameter in model.teacher.named_parameters():
        expected = 0.9 * before.get_parameter(name) + 0.1 * model.student.get_parameter(name)
        torch.testing.assert_close(parameter, expected)
    assert torch.equal(model.teacher.backbone.norm.running_mean, before.backbone.norm.running_mean)


def test_the_centre_is_an_average():
    model = pair()
    model.update_centre(torch.arange(6.0), 0.9)
    model.update_centre(torch.ones(6), 0.5)
    torch.testing.assert_close(model.centre, 0.05 * torch.arange(6.0) + 0.5)


def test_schedules_are_the_official_ones():
    options = DinoOptions(
        epochs=10, warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=4, freeze_last_layer=2
    )
    steps, found = 50, []
    for update in range(steps):
        found.append(values_at(options, update, steps))
    # numpy as in main_dino.py
    i = numpy.arange(steps)
    momentum = 1 + 0.5 * (0.996 - 1) * (1 + numpy.cos(numpy.pi * i / steps))
    decay = 0.4 + 0.5 * (0.04 - 0.4) * (1 + numpy.cos(numpy.pi * i / steps))
    temperature = numpy.concatenate([numpy.linspace(0.04, 0.07, 4), numpy.ones(6) * 0.07]).repeat(5)
    numpy.testing.assert_allclose([value.momentum for value in found], momentum)
    numpy.testing.assert_allclose([value.weight_decay for value in found], decay)
    numpy.testing.assert_allclose([value.teacher_temperature for value in found], temperature)
    assert [value.last_layer_is_frozen for value in found] == [True] * 10 + [False] * 40


@pytest.mark.parametrize(("warmup", "expected"), [(0, [0.07] * 3), (1, [0.04, 0.07, 0.07]), (2, [0.04, 0.07, 0.07])])
def test_short_warm_ups_of_the_temperature(warmup, expected):
    options = DinoOptions(epochs=3, teacher_temp=0.07, warmup_teacher_temp_epochs=warmup)
    assert [values_at(options, update, 3).teacher_temperature for update in range(3)] == expected


def test_both_kinds_of_collapse_are_named():
    uniform = measure_targets(torch.full((5, 64), 1 / 64), ONE)
    one = measure_targets(F.one_hot(torch.zeros(5, dtype=torch.long), 64).float(), ONE)
    alive = measure_targets(F.one_hot(torch.arange(5), 64).float(), ONE)
    assert alive.information == pytest.approx(math.log(5))
    assert "uniform target" in advice(uniform, 64) and "few prototypes" in advice(one, 64)
    assert advice(alive, 64) is None and advice(Targets(2.0, 2.2), 64) is None
