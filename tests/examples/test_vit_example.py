"""The ViT example runs as its docstring says, keeps the function, and learns through the new term."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

EXAMPLES = Path(__file__).parents[2] / "python" / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import vit_context_aggregation

    return vit_context_aggregation


def vit(**arguments):
    settings = {"class_token": False, "global_pool": "avg", "num_classes": 3, "img_size": 32, **arguments}
    return timm.create_model("vit_tiny_patch16_224", patch_size=8, depth=2, **settings)


def test_swap_keeps_the_function(example):
    model = vit().eval()
    image = torch.randn(2, 3, 32, 32)
    before = model(image)
    after = example.use_context_aggregation(model, kernel_size=3)(image)
    torch.testing.assert_close(after, before)
    after.square().sum().backward()
    assert all(block.attn.aggregation.beta.grad.count_nonzero() for block in model.blocks)


def test_prefix_tokens_are_refused(example):
    with pytest.raises(ValueError, match=r"vit: expected no prefix tokens \(class_token=False\), got 1"):
        example.use_context_aggregation(vit(class_token=True))


def test_program():
    program = EXAMPLES / "vit_context_aggregation.py"
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert "largest change of a logit" in result.stdout
    assert len(result.stdout.splitlines()[1].split()) == 5 + 12
