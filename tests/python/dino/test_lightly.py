"""The method against lightly's, where it is installed: pip install --no-deps lightly is enough for these parts."""

import pytest
import torch
from trial_runs import PROGRAMS  # noqa: F401  makes `tasks` importable

from tasks.dino.branches import Distillation
from tasks.dino.head import DINOHead
from tasks.dino.loss import distillation_loss, targets_of
from tasks.dino.options import DinoOptions
from tasks.dino.schedules import values_at

loss = pytest.importorskip("lightly.loss")
heads = pytest.importorskip("lightly.models.modules.heads")


def test_loss_and_centre_over_epochs_of_a_warm_up():
    options = DinoOptions(epochs=5, warmup_teacher_temp=0.03, teacher_temp=0.06, warmup_teacher_temp_epochs=3)
    theirs = loss.DINOLoss(64, 0.03, 0.06, 3, options.student_temp, options.center_momentum)
    generator = torch.Generator().manual_seed(0)
    ours = Distillation(torch.nn.Identity(), torch.nn.Identity(), 2, 64)
    for epoch in range(5):
        learned = torch.randn(6, 8, 64, generator=generator)
        taught = torch.randn(2, 8, 64, generator=generator)
        temperature = values_at(options, epoch, 5).teacher_temperature
        found = distillation_loss(learned, targets_of(taught, ours.centre, temperature), options.student_temp)
        expected = theirs(list(taught), list(learned), epoch=epoch)
        assert found.item() == pytest.approx(expected.item(), rel=2e-6)
        ours.update_centre(taught.mean(dim=(0, 1)), options.center_momentum)
        torch.testing.assert_close(ours.centre, theirs.center.flatten(), rtol=1e-5, atol=1e-7)
    assert ours.centre.abs().sum() > 0


def test_head():
    theirs = heads.DINOProjectionHead(12, 16, 8, 32)
    ours = DINOHead(12, 32, 16, 8)
    layers = [layer for layer in theirs.layers if isinstance(layer, torch.nn.Linear)]
    own = [layer for layer in ours.mlp if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for layer, other in zip(own, layers, strict=True):
            layer.load_state_dict(other.state_dict())
        ours.prototypes.copy_(theirs.last_layer.weight_v)
    features = torch.randn(5, 12)
    torch.testing.assert_close(ours(features), theirs(features), rtol=1e-5, atol=1e-6)
