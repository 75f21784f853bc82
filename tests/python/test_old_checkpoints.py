"""Checkpoints from before tasks had an engine of their own (commit 15314e2) load, continue and are judged.

`old_run` was trained by that commit and stopped after three of six steps of its second epoch:

    small_run(images, "run", "--model", "container_pam", "--model-kwargs", *NETWORK)
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from trial_runs import small_run

import train
import validate
from comparison.settings import same_run
from tasks.classification.option_checks import resolve

OLD = Path(__file__).with_name("old_run")
NETWORK = ("patch_size=8", "embed_dim=8", "depth=1", "num_heads=1", "mlp_ratio=1")


def test_a_run_continues_from_an_old_checkpoint(images, tmp_path, capsys):
    saved = torch.load(OLD / "last.pth", weights_only=True)
    assert "accumulate_steps" not in saved["options"] and "parts" not in saved["position"] and "task" not in saved
    resume = ["--resume", str(OLD / "last.pth"), "--output-dir", str(tmp_path / "resumed"), "--device", "cpu"]
    resumed = train.main([*resume, "--data-path", str(images)])
    assert "resumed   epoch 2, step 3" in (output := capsys.readouterr().out) and "starts over" not in output
    network = ["--model", "container_pam", "--model-kwargs", *NETWORK]
    whole = train.main(small_run(images, tmp_path / "whole", *network))
    assert len(resumed.history) == len(whole.history) == 3 and resumed.history[0] == saved["history"][0]
    # equal to the bit where both parts were trained; the first part of one was trained by another processor
    for row, wanted in zip(resumed.history, whole.history, strict=True):
        assert row["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-5)
    for module, other in ((resumed.model, whole.model), (resumed.ema.module, whole.ema.module)):
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_an_old_checkpoint_is_judged(images):
    best = torch.load(OLD / "best.pth", weights_only=True)
    judgement = validate.main(["--checkpoint", str(OLD / "best.pth"), "--data-path", str(images), "--device", "cpu"])
    loss = best["history"][0]["ema_loss" if best["averaged"] else "val_loss"]
    assert judgement.metrics.loss == pytest.approx(loss, rel=1e-5) and judgement.metrics.images == 15


def test_an_old_run_of_a_comparison_is_still_the_same_run(images):
    saved = torch.load(OLD / "last.pth", weights_only=True)["options"]
    options = resolve({}, saved)
    assert same_run(options, saved)
    assert not same_run(dataclasses.replace(options, accumulate_steps=2), saved)
