"""container_light computes what the released container_v1_light computes, in float64, to rounding."""

import pytest
import timm
import torch
from released import golden, golden_input, released_state_dict

from container_kernels import use_backend
from container_kernels.models.checkpoint import checkpoint_filter_fn

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def expected():
    return golden()


@pytest.fixture(scope="module", params=["cpu", "reference"])
def network(request):
    with use_backend(request.param):
        model = timm.create_model("container_light").double()
        model.load_state_dict(checkpoint_filter_fn(released_state_dict(), model))
        yield model.to(memory_format=torch.channels_last)


def relative_error(actual, expected):
    expected = torch.from_numpy(expected).double()
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_evaluation(network, expected):
    network.eval()
    with torch.no_grad():
        features = network.forward_features(golden_input().double())
        assert relative_error(network.forward_head(features), expected["logits"]) < TOLERANCE
        # The file holds these in float32.
        assert relative_error(network.forward_head(features, pre_logits=True), expected["pooled"]) < 1e-6


def test_training(network, expected):
    network.train()
    running = {name: buffer.clone() for name, buffer in network.named_buffers()}
    logits = network(golden_input().double())
    assert relative_error(logits.detach(), expected["train_logits"]) < TOLERANCE
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 7]))
    assert abs(loss.item() / expected["train_loss"] - 1) < TOLERANCE
    loss.backward()

    released = dict(zip(expected["grad_names"].tolist(), expected["grad_norms"].tolist(), strict=True))
    ours = dict(network.named_parameters())
    translated = checkpoint_filter_fn(
        {name: torch.tensor(norm, dtype=torch.float64) for name, norm in released.items()}, network
    )
    assert translated.keys() == ours.keys()
    largest = max(released.values())
    for name, norm in translated.items():
        # Biases that a norm removes have gradient zero, and are rounding noise (1e-17) in the file as here.
        difference = abs(ours[name].grad.norm().item() - norm.item())
        assert difference <= TOLERANCE * norm.item() + 1e-14 * largest, name
    network.load_state_dict(running, strict=False)  # running statistics as before, for the other test


def test_float32_kernels_agree_too(expected):
    """What users run: float32 on the automatic backend."""
    model = timm.create_model("container_light").eval()
    model.load_state_dict(released_state_dict())
    with torch.no_grad():
        logits = model(golden_input())
    assert relative_error(logits.double(), expected["logits"]) < 2e-5
