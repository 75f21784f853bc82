"""Norms folded into projections: the block computes what its layers do one after the other, whatever they are."""

import copy

import pytest
import timm
import torch
from norm_cases import NORMS, UNKNOWN, image, make_block, one_after_the_other
from timm.layers import DropPath
from torch import nn

from container_kernels.modules.fusible import sample_scale
from container_kernels.modules.norm_folding import Affine, affine_of, needs_statistics, why_unknown
from container_kernels.ops.fold_norm import Moments


def run(block, function, x, seed=1):
    """Result, all gradients, and buffers after the call."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(seed)
    out = function(x)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out.dtype)
    grads = torch.autograd.grad(out, [x, *block.parameters()], grad_out)
    return out, grads, {name: buffer.clone() for name, buffer in block.named_buffers()}


def assert_block_is_its_layers(block, x, **tolerance):
    twin = copy.deepcopy(block)
    expected = run(twin, lambda image: one_after_the_other(twin, image), x)
    torch.testing.assert_close(run(block, block, x), expected, **tolerance)


@pytest.mark.parametrize("dynamic", [True, False], ids=["mix", "static"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", [*NORMS, *UNKNOWN])
def test_block_equals_its_layers(norm, training, dynamic):
    """Results, gradients, running statistics; with drop-path, of the same random numbers."""
    block = make_block(norm, training=training, dynamic=dynamic, drop_path=0.4)
    if isinstance(block.norm1, nn.SyncBatchNorm) and training:
        pytest.skip("SyncBatchNorm's own forward takes no CPU tensors; test_parallel.py has it")
    assert_block_is_its_layers(block, image(4, 12, 5, 6), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_known_norms_are_not_called(norm, monkeypatch):
    """What the test above compares is the folded path, and the tensor that it saves is never made."""
    block = make_block(norm, training=False)

    def refuse(self, x):
        raise AssertionError("called")

    monkeypatch.setattr(type(block.norm1), "forward", refuse)
    block(image(2, 12, 4, 4))
    with pytest.raises(AssertionError, match="called"):
        one_after_the_other(block, image(2, 12, 4, 4))


@pytest.mark.parametrize("norm", UNKNOWN)
def test_unknown_norms_are_called(norm):
    assert why_unknown(make_block(norm).norm1)


@pytest.mark.parametrize("ratio", [1, 10, 100, 1e3, 1e4])
def test_float32_is_as_exact_as_the_layers(ratio):
    """A mean far above the deviation, the hard case of a variance from sums and of a folded mean."""
    block = make_block("batch norm", drop_path=0.0)
    with torch.no_grad():
        block.pos_embed.weight /= ratio  # else the border alone would make a deviation as large as the mean
    x = (image(4, 12, 7, 7) + ratio).float()
    block.float()
    twin, exact_twin = copy.deepcopy(block), copy.deepcopy(block).double()
    exact = run(exact_twin, lambda x: one_after_the_other(exact_twin, x), x.double())
    ours = run(block, block, x)
    layers = run(twin, lambda x: one_after_the_other(twin, x), x)
    eps = torch.finfo(torch.float32).eps

    def errors(select):
        for actual, eager, expected in zip(*map(select, (ours, layers, exact)), strict=True):
            scale = expected.abs().max().item()
            yield (actual - expected).abs().max() / scale, (eager - expected).abs().max() / scale

    for error, allowed in errors(lambda result: [result[0], *(t for t in result[2].values() if t.is_floating_point())]):
        assert error <= 2 * allowed + eps
    # The layers round x − mean, the block W' x and W' mean: sums of many numbers as large as the mean.
    for error, allowed in errors(lambda result: result[1]):
        assert error <= 4 * allowed + 16 * eps


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_bfloat16_autocast(training):
    """Under autocast the folded block is no less exact than its layers are, though its weights carry the norm."""
    block = make_block("batch norm", training=training, dim=32, drop_path=0.0)
    block = block.float()
    x = image(4, 32, 7, 7, dtype=torch.float32)
    twin, exact_twin = copy.deepcopy(block), copy.deepcopy(block).double()
    exact = one_after_the_other(exact_twin, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        ours, layers = block(x), one_after_the_other(twin, x)
    error, allowed = ((t - exact).norm().item() for t in (ours, layers))
    assert error <= 1.5 * allowed
    torch.testing.assert_close(block.norm1.running_var, twin.norm1.running_var, rtol=1e-2, atol=1e-2)


def test_weights_are_rounded_before_the_mean_is_taken_off():
    """b' = b + W shift − W' mean with W' as rounded: a large mean then cancels instead of magnifying the rounding."""
    weight, mean = torch.randn(8, 16), torch.full((16,), 100.0)
    x = (mean + torch.randn(64, 16)).bfloat16().float()
    gamma, beta = torch.rand(16) + 0.5, torch.randn(16)
    affine = Affine(Moments(mean, torch.ones(16)), gamma, beta, 0.0)
    exact = ((x - mean).double() * gamma + beta) @ weight.double().t()
    folded, bias = affine.fold_into(weight, None, torch.bfloat16)
    assert folded.dtype == torch.bfloat16 and bias.dtype == torch.float32
    error = (x.double() @ folded.double().t() + bias - exact).abs().max()
    normalized = ((x - mean) * gamma + beta).bfloat16().double()
    allowed = (normalized @ weight.bfloat16().double().t() - exact).abs().max()
    assert error <= 2 * allowed


@pytest.mark.parametrize(
    "name", ["pos_embed", "norm1", "norm2", "aggregation", "aggregation.in_proj", "mlp", "mlp.fc1"]
)
def test_hooks_are_called_and_see_what_the_layer_does(name):
    block = make_block("batch norm", drop_path=0.3)
    twin = copy.deepcopy(block)
    seen, expected = [], []
    block.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append((*inputs, output)))
    twin.get_submodule(name).register_forward_hook(lambda module, inputs, output: expected.append((*inputs, output)))
    x = image(3, 12, 5, 5)
    run(block, block, x)
    run(twin, lambda x: one_after_the_other(twin, x), x)
    assert len(seen) == len(expected) == 1
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-9)
    assert_block_is_its_layers(block, x, rtol=1e-9, atol=1e-9)


def test_exchanged_layers_are_called():
    """A low-rank adapter around a projection, a parametrized weight, an MLP of another kind, a dropout."""

    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down = base, nn.Conv2d(12, base.out_features, 1).double()

        def forward(self, x):
            return self.base(x) + self.down(x)

    for change in (
        lambda block: setattr(block.aggregation, "in_proj", Adapter(block.aggregation.in_proj)),
        lambda block: nn.utils.parametrizations.weight_norm(block.mlp.fc1),
        lambda block: setattr(block, "mlp", nn.Conv2d(12, 12, 1).double()),
        lambda block: setattr(block, "aggregation", nn.Conv2d(12, 12, 1).double()),
        lambda block: setattr(block, "pos_embed", nn.Conv2d(12, 12, 1).double()),
        lambda block: setattr(block.mlp, "act", nn.GELU("tanh")),
        lambda block: setattr(block.mlp.drop1, "p", 0.2),
        lambda block: setattr(block, "drop_path", nn.Dropout2d(0.2)),
    ):
        block = make_block("batch norm", drop_path=0.3)
        change(block)
        assert_block_is_its_layers(block, image(3, 12, 5, 5), rtol=1e-9, atol=1e-9)


def test_gradients_numerically():
    block = make_block("batch norm", dim=6)
    x = image(2, 6, 3, 3).requires_grad_()
    names, parameters = zip(*block.named_parameters(), strict=True)
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,)),
        (x, *parameters),
    )


def test_one_value_per_channel_raises_as_batch_norm_does():
    block = make_block("batch norm")
    with pytest.raises(ValueError, match="x: expected more than 1 value per channel to normalize by, got 1"):
        block(image(1, 12, 1, 1))
    block.eval()(image(1, 12, 1, 1))


def test_tracking_can_be_turned_off():
    """As some programs do around a second forward pass: batch statistics count, running ones stay."""
    block = make_block("batch norm")
    block.norm1.track_running_stats = block.norm2.track_running_stats = False
    assert_block_is_its_layers(block, image(3, 12, 5, 5), rtol=1e-9, atol=1e-9)
    assert block.norm1.num_batches_tracked == block.norm2.num_batches_tracked == 0


def test_empty_batch_in_training():
    block = make_block("batch norm")
    assert_block_is_its_layers(block, image(0, 12, 5, 5))


def test_a_forward_of_its_own_is_called():
    """Wrappers that load, time or move a layer replace `forward` on the layer itself."""
    for name in ("norm1", "aggregation", "aggregation.in_proj", "aggregation.out_proj", "mlp", "mlp.fc1", "pos_embed"):
        block = make_block("batch norm")
        layer, calls = block.get_submodule(name), []
        forward = layer.forward
        layer.forward = lambda x, forward=forward, calls=calls: calls.append(1) or forward(x)
        block(image(3, 12, 5, 5))
        assert len(calls) == 1, name


def test_measuring_changes_nothing():
    """Counters and trackers hook all modules: what they see must be what runs without them."""
    block, seen = make_block("batch norm"), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        block(image(3, 12, 5, 5))
    finally:
        handle.remove()
    assert seen == ["ContainerBlock"]


def test_second_derivatives_of_a_static_block():
    block = make_block("batch norm", dynamic=False)
    x = image(3, 12, 4, 4).requires_grad_()
    penalties = []
    for function in (block, lambda x: one_after_the_other(block, x)):
        (grad,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(grad.square().sum(), [x, *block.parameters()]))
    torch.testing.assert_close(*penalties, rtol=1e-8, atol=1e-6)


def test_constant_channels():
    """The variance is 0: it must not come out negative, nor the result NaN."""
    block = make_block("batch norm").float()
    nn.init.zeros_(block.pos_embed.weight)
    out = block(torch.full((2, 12, 5, 5), 1000.1))
    assert out.isfinite().all()
    assert (block.norm1.running_var >= 0).all()


def test_sample_scale_draws_what_drop_path_draws():
    x = torch.ones(50, 3, 2, 2)
    for layer in (
        DropPath(0.3),
        DropPath(0.3, scale_by_keep=False),
        DropPath(0.0),
        DropPath(0.3).eval(),
        nn.Identity(),
    ):
        torch.manual_seed(5)
        expected = layer(x)
        torch.manual_seed(5)
        scale = sample_scale(layer, x)
        torch.testing.assert_close(x if scale is None else x * scale.view(-1, 1, 1, 1), expected)


def test_running_statistics_take_no_gradient_and_no_graph():
    block = make_block("batch norm")
    for _ in range(2):
        block(image(2, 12, 4, 4)).sum().backward()
    assert block.norm1.num_batches_tracked == 2
    assert not block.norm1.running_mean.requires_grad


def test_statistics_of_a_norm_are_those_of_its_input():
    norm = nn.BatchNorm2d(4).double().train()
    x = image(3, 4, 5, 6)
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    assert needs_statistics(norm) and not needs_statistics(copy.deepcopy(norm).eval())
    affine = affine_of(norm, Moments(rows.sum(0), rows.var(0, correction=0) * len(rows), len(rows)))
    twin = nn.BatchNorm2d(4).double().train()
    expected = twin(x)
    scale, shift = affine.scale_and_shift()
    actual = (rows * scale + shift).view(3, 5, 6, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())


def test_compiles_without_a_graph_break():
    block = make_block("batch norm", drop_path=0.0).float()
    twin = copy.deepcopy(block)
    x = image(2, 12, 5, 5, dtype=torch.float32)
    torch.testing.assert_close(
        run(block, torch.compile(block, fullgraph=True), x), run(twin, twin, x), rtol=1e-4, atol=1e-4
    )


def test_checkpointing_gives_the_same_gradients():
    model = timm.create_model("container_tiny", drop_path_rate=0.2)
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    x = torch.randn(4, 3, 32, 32)
    results = []
    for network in (model, twin):
        torch.manual_seed(0)
        out = network(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(network.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
