"""The benchmark problems, and the check against eager that every contender passes before it is timed."""

import pytest
import timm
import torch

from bench.names import COMPILED, EAGER, NOT_FUSED, OURS
from bench.problems import context_aggregation, local_aggregation, networks
from bench.problems.context_aggregation import ContextAggregationProblem
from bench.problems.deformable_attention import DeformableAttentionProblem
from bench.problems.fused_mlp import FusedMlpProblem
from bench.problems.isotropic import IsotropicProblem
from bench.problems.local_aggregation import LocalAggregationProblem
from bench.problems.networks import BlockProblem, ModelProblem
from bench.problems.problem import checked_contenders, contender_names
from bench.problems.projection import ProjectionProblem
from container_kernels.testing import MixCase


def tiny_problems():
    return [
        ContextAggregationProblem("cpu", True, MixCase()),
        LocalAggregationProblem("cpu", True, 2, 5, 6, 8, 5),
        BlockProblem("cpu", True, 1, True, 2, 6),
        BlockProblem("cpu", False, 1, False, 2, 6),
        ModelProblem("cpu", False, "container", 2, 64),
        ModelProblem("cpu", True, "container_light", 4, 64),
        IsotropicProblem("cpu", False, "mixer", 1, 32),
        IsotropicProblem("cpu", True, "deit_small", 2, 32),
        FusedMlpProblem("cpu", True, 2, 30, 16, 4),
        ProjectionProblem("cpu", True, 2, 30, 16, 16),
        ProjectionProblem("cpu", False, 2, 30, 16, 48),
        DeformableAttentionProblem("cpu", True, 1, (400, 600), 5),
    ]


@pytest.mark.parametrize("index", range(12))
def test_ours_passes_the_gate(index):
    problem = tiny_problems()[index]
    names = [name for name in contender_names(problem) if name != COMPILED]
    contenders, unavailable = checked_contenders(problem, names)
    assert list(contenders) == names and not unavailable
    # Training compares gradients too, or it would prove nothing about the backward.
    compared = problem.outputs(EAGER, contenders[EAGER]())
    assert any("gradient" in name for name in compared) == ("forward +" in problem.kind or "step" in problem.kind)


def test_gate_stops_a_wrong_op(monkeypatch):
    right = local_aggregation.local_aggregation

    def loses_the_first_column(x, weight, bias):
        out = right(x, weight, bias)
        return torch.cat([out[:, :, :1] * 0, out[:, :, 1:]], dim=2)

    monkeypatch.setattr(local_aggregation, "local_aggregation", loses_the_first_column)
    with pytest.raises(AssertionError, match=r"depthwise 5×5 .*: ours: .* differs from eager by .*, allowed 2e-05"):
        checked_contenders(tiny_problems()[1], [OURS])


def test_gate_stops_a_wrong_gradient(monkeypatch):
    right = context_aggregation.context_aggregation

    def query_without_gradient(q, *arguments, **keywords):
        return right(q.detach() * 0.5 + q * 0.5, *arguments, **keywords)  # right output, half the gradient

    monkeypatch.setattr(context_aggregation, "context_aggregation", query_without_gradient)
    with pytest.raises(AssertionError, match=r"ours: gradient of q differs from eager by 5\.0e-01"):
        checked_contenders(tiny_problems()[0], [OURS])


def test_gate_stops_a_wrong_network(monkeypatch):
    problem = tiny_problems()[4]
    monkeypatch.setattr(networks, "timm", timm_without_local_terms())
    with pytest.raises(AssertionError, match=r"container inference.*: ours: out differs from eager"):
        checked_contenders(problem, [OURS])


def test_inference_of_ours_is_that_of_the_fused_network():
    inference, training = tiny_problems()[4:6]
    assert NOT_FUSED in contender_names(inference) and NOT_FUSED not in contender_names(training)
    fused, plain = (set(inference.network(name).state_dict()) for name in (OURS, NOT_FUSED))
    assert plain == set(timm.create_model("container").state_dict()) and not fused & {"stages.0.blocks.0.norm1.weight"}


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
    def no_compiler(*_, **__):
        raise RuntimeError("no C++ compiler found\nlong story")

    monkeypatch.setattr(torch, "compile", no_compiler)
    contenders, unavailable = checked_contenders(tiny_problems()[1], [OURS, EAGER, COMPILED])
    assert list(contenders) == [OURS, EAGER]
    assert unavailable == {COMPILED: "RuntimeError: no C++ compiler found"}


def test_a_backend_of_ours_may_refuse_but_not_fail(monkeypatch):
    problem = tiny_problems()[1]
    contenders, unavailable = checked_contenders(problem, ["ours on cuda"])
    assert not contenders and "backend 'cuda' cannot serve this call" in unavailable["ours on cuda"]

    def fail(*_, **__):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(local_aggregation, "local_aggregation", fail)
    with pytest.raises(AssertionError, match=r"depthwise 5×5 .*: ours on cuda: an illegal memory access"):
        checked_contenders(problem, ["ours on cuda"])
