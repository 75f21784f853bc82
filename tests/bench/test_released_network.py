"""The baseline network is the released one, in plain PyTorch."""

import json

import timm
import torch
from released import golden, golden_input, released_state_dict

from bench import ROOT
from bench.problems.released_network import ReleasedNetwork

GOLDEN_NAMES = ROOT / "tests" / "golden" / "container_light_official_names.json"


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_baseline_network_has_the_released_names():
    with torch.device("meta"):
        network = ReleasedNetwork()
    assert {n: list(t.shape) for n, t in network.state_dict().items()} == json.loads(GOLDEN_NAMES.read_text())


def test_baseline_network_computes_what_the_release_does():
    baseline, ours = ReleasedNetwork().eval(), timm.create_model("container_light").eval()
    baseline.load_state_dict(released_state_dict())
    ours.load_state_dict(baseline.state_dict())
    baseline.to(memory_format=torch.channels_last)
    image = golden_input().to(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = baseline(image)
        assert relative_error(logits, torch.from_numpy(golden()["logits"])) < 2e-5
        assert relative_error(ours(image), logits) < 2e-5
