"""torch.compile for images of any size: one program for all of them, as far as today's compiler makes one.

Tracing, our operators' fakes and autograd take symbolic sizes; that is tested here without Inductor. With gradients
Inductor fails on a saved view of symbolic strides (DESIGN.md, "What happens in a call").
"""

import pytest
import torch
from tiny_networks import tiny, trained

from container_kernels import ContainerBlock

SIZES = [(2, 3, 64, 96), (3, 3, 96, 64), (1, 3, 128, 128)]


def image(size):
    return torch.randn(size).to(memory_format=torch.channels_last)


def step(model, x):
    out = model(x)
    return out, torch.autograd.grad(out.square().mean(), list(model.parameters()))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_one_program_for_all_sizes(fresh_compiler, training):
    block = trained(ContainerBlock(12, 2)).train(training)
    programs = []

    def record(graph, inputs):
        programs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=record)
    made = []
    for batch, height, width in ((2, 6, 9), (3, 9, 6), (4, 12, 12)):
        x = image((batch, 12, height, width))
        torch.testing.assert_close(step(compiled, x), step(block, x), rtol=1e-4, atol=1e-5)
        made.append(len(programs))
    assert made[0] == made[-1] > 0  # another size compiles nothing


@torch.no_grad()
@pytest.mark.slow
def test_inductor_compiles_inference(fresh_compiler):
    model = trained(tiny("container_light")).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for size in SIZES:
        x = image(size)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.xfail(raises=torch._inductor.exc.InductorError, reason="symbolic strides of saved views", strict=True)
def test_inductor_compiles_training(fresh_compiler):
    model = trained(tiny("container_light")).train()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for size in SIZES:
        x = image(size)
        torch.testing.assert_close(step(compiled, x), step(model, x), rtol=1e-4, atol=1e-5)
