"""The ablation: every step computes the same network."""

import pytest
import torch

from bench import ablation
from bench.problems.networks import ModelProblem


def test_steps_of_the_ablation_agree(capsys):
    threads = torch.get_num_threads()
    try:
        assert ablation.main(["--device", "cpu", "--batch", "1", "--size", "64", "--seconds", "0.1"]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("the release", "+ "))]
    assert len(lines) == len(ablation.STEPS) == 5
    assert lines[0].split()[-2:] == ["1.00", "1.00"]


def test_a_wrong_step_of_the_ablation_is_an_error(monkeypatch):
    monkeypatch.setattr(ablation, "fused_mlp", lambda x, *weights: x)
    with pytest.raises(AssertionError, match=r"fused MLP: differs from eager by"):
        ablation.contenders(ModelProblem("cpu", False, "container_light", 1, 64))
