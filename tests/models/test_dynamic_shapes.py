"""torch.compile for images of any size: one program of a block serves all of them, in evaluation and in training."""

import pytest
import torch
from tiny_networks import trained

from container_kernels import ContainerBlock

SIZES = [(2, 12, 6, 9), (3, 12, 9, 6), (4, 12, 12, 12)]


def step(model, x):
    out = model(x)
    return out, torch.autograd.grad(out.square().mean(), list(model.parameters()))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_one_program_for_all_sizes(fresh_compiler, training):
    block = trained(ContainerBlock(12, 2)).train(training)
    programs, made = [], []

    def record(graph, inputs):
        programs.append(graph)
        return torch._dynamo.lookup_backend("inductor")(graph, inputs)

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=record)
    for size in SIZES:
        x = torch.randn(size).to(memory_format=torch.channels_last)
        torch.testing.assert_close(step(compiled, x), step(block, x), rtol=1e-4, atol=1e-5)
        made.append(len(programs))
    assert made[0] == made[-1] > 0  # another size compiles nothing
