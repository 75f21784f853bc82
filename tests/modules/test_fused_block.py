"""A fused block computes what the block's layers do, whatever they are, and nothing else."""

import copy
import io
import itertools

import pytest
import torch
from norm_cases import NORMS, UNKNOWN, image, make_block, one_after_the_other
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from container_kernels import ContainerBlock, LocalAggregation, use_backend
from container_kernels.modules.fused_block import ChannelAffine, FusedContainerBlock

EXACT = {"rtol": 1e-12, "atol": 1e-12}
ACTIVATIONS = {
    "gelu": nn.GELU,
    "tanh gelu": lambda: nn.GELU("tanh"),
    "relu in place": lambda: nn.ReLU(inplace=True),
    "prelu": nn.PReLU,
}
AGGREGATIONS = [
    (dynamic, static, mixing)
    for dynamic, static, mixing in itertools.product((True, False), ("local", "dense", "both", None), ("gate", "free"))
    if dynamic or static is not None
]


def randomized(block, seed=1):
    """Every parameter away from where it starts: alpha and beta too."""
    torch.manual_seed(seed)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def assert_fuses(block, x, **tolerance):
    with torch.no_grad():
        expected = one_after_the_other(block.eval(), x)
        fused = block.fuse()
        torch.testing.assert_close(fused(x), expected, **(tolerance or EXACT))
    return fused


@pytest.mark.parametrize("qkv_bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("norm", ["batch norm", "layer norm"])
@pytest.mark.parametrize(("dynamic", "static", "mixing"), AGGREGATIONS)
def test_every_aggregation(dynamic, static, mixing, norm, qkv_bias):
    settings = {"dynamic": dynamic, "static": static, "mixing": mixing, "qkv_bias": qkv_bias, "grid_size": (5, 6)}
    block = randomized(make_block(norm, drop=0.2, drop_path=0.3, **settings))
    assert_fuses(block, image(2, 12, 5, 6))


@pytest.mark.parametrize("norm", [*NORMS, *UNKNOWN])
def test_every_norm(norm):
    fused = assert_fuses(make_block(norm), image(2, 12, 4, 5))
    is_folded = norm in NORMS and norm != "no running statistics"
    assert (fused.fused_aggregation.norm is None, fused.fused_mlp.norm is None) == (is_folded, is_folded)


@pytest.mark.parametrize("norm", ["batch norm", "layer norm"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, norm):
    fused = assert_fuses(make_block(norm, act_layer=ACTIVATIONS[activation]), image(2, 12, 4, 5))
    assert (fused.fused_mlp.act is None) == (activation == "gelu")


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_every_window(kernel_size):
    block = make_block("batch norm", kernel_size=kernel_size)
    block.pos_embed = LocalAggregation(12, kernel_size, residual=kernel_size != 3, bias=kernel_size != 1).double()
    assert_fuses(block, image(1, 12, 1, 3))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(0, 12, 4, 5), (2, 12, 1, 1), (3, 12, 7, 2)])
def test_any_image_in_any_layout(shape, layout):
    x = image(*shape).to(memory_format=layout)
    fused = assert_fuses(make_block("batch norm"), x)
    assert fused(x).is_contiguous(memory_format=torch.channels_last)


def test_float32_is_as_exact_as_the_layers():
    block, x = randomized(make_block("batch norm", training=False)), image(2, 12, 7, 7)
    exact = one_after_the_other(block, x)
    block.float()
    eager = one_after_the_other(block, x.float())
    error = (block.fuse()(x.float()) - exact).abs().max()
    assert error <= 2 * (eager - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()


class CalledLayer(nn.Module):
    """Somebody's layer in the place of one of ours; its class is not known."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) * 1.5


LAYERS = ["pos_embed", "norm1", "aggregation", "aggregation.in_proj", "aggregation.proj_drop", "drop_path", "norm2"]
LAYERS += ["mlp", "mlp.fc1", "mlp.act", "mlp.drop2", "mlp.fc2"]


@pytest.mark.parametrize("name", LAYERS)
def test_an_exchanged_layer_is_called(name):
    block = make_block("batch norm", drop=0.1, drop_path=0.1)
    parent, _, child = name.rpartition(".")
    setattr(block.get_submodule(parent), child, CalledLayer(block.get_submodule(name)))
    assert name.rpartition(".")[2] in block.eval().why_not_fused()
    fused = assert_fuses(block, image(2, 12, 4, 5))
    assert any(isinstance(module, CalledLayer) for module in fused.modules())
    assert f"{name.rpartition('.')[2]} is of class CalledLayer" in fused.why_not_fused()


@pytest.mark.parametrize("name", LAYERS)
def test_a_hooked_layer_is_called(name):
    block = make_block("batch norm", drop=0.1, drop_path=0.1)
    block.get_submodule(name).register_forward_hook(lambda module, args, out: out * 1.5)
    fused = assert_fuses(block, image(2, 12, 4, 5))
    assert f"{name.rpartition('.')[2]} has hooks" in fused.why_not_fused()


def test_a_block_of_known_layers_has_no_reason():
    block = make_block("batch norm", drop_path=0.3)
    assert block.why_not_fused() is None and block.eval().why_not_fused() is None
    assert block.fuse().why_not_fused() is None


def test_dropout_is_a_reason_in_training_alone():
    block = make_block("batch norm", drop=0.2)
    assert block.why_not_fused() == (
        "norm1 comes before a layer that is called; aggregation proj_drop drops elements with p = 0.2; "
        "norm2 comes before a layer that is called; mlp drop1 drops elements with p = 0.2; drop2 drops elements with "
        "p = 0.2"
    )
    assert block.eval().why_not_fused() is None


def recording(forward, called):
    def record(self, x):
        called.append(self)
        return forward(self, x)

    return record


@pytest.mark.parametrize("norm", [*NORMS, *UNKNOWN])
def test_the_reason_is_what_forward_does(norm, monkeypatch):
    """A norm is called just where there is a reason."""
    for training in (False, True):
        block = make_block(norm, training=training)
        if isinstance(block.norm1, nn.SyncBatchNorm):
            continue  # its own forward takes no CPU tensors
        called = []
        kind = type(block.norm1)
        # Not a hook, which would be a reason itself.
        monkeypatch.setattr(kind, "forward", recording(kind.forward, called))
        reason = block.why_not_fused()
        block(image(2, 12, 4, 5))
        monkeypatch.undo()
        for name in ("norm1", "norm2"):
            assert any(layer is getattr(block, name) for layer in called) == (f"{name} " in (reason or ""))


def test_hooks_of_the_block_move():
    block, x = make_block("batch norm"), image(2, 12, 4, 5)
    before = block.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    after = block.register_forward_hook(lambda module, args, kwargs, out: out + args[0], with_kwargs=True)
    block.eval()
    expected = one_after_the_other(block, x * 2)
    fused = block.fuse()
    torch.testing.assert_close(fused(x), expected + x * 2, **EXACT)
    before.remove(), after.remove()
    torch.testing.assert_close(fused(x * 2), expected, **EXACT)


def test_a_derived_block_is_left_as_it_is():
    class Shifted(ContainerBlock):
        def forward(self, x):
            return super().forward(x) + 1

    block = Shifted(12, 3)
    assert block.fuse() is block and not block.training


@pytest.mark.parametrize("norm", ["batch norm", "layer norm", "no running statistics", "instance norm"])
def test_training_mode_changes_nothing(norm):
    block = make_block(norm, drop=0.5, drop_path=0.5, act_layer=nn.RReLU)
    block.norm1.register_forward_hook(lambda *_: None)  # so that a batch norm is called, too
    x = image(2, 12, 4, 5)
    fused = assert_fuses(block, x)
    weights, expected = copy.deepcopy(fused.state_dict()), fused(x)
    network = nn.Sequential(fused).train()
    assert network.training and not any(module.training for module in fused.modules())
    assert torch.equal(network(x), expected)
    assert all(torch.equal(value, weights[name]) for name, value in fused.state_dict().items())


def test_nothing_is_trained_but_gradients_reach_the_input():
    block, x = make_block("batch norm", training=False), image(2, 12, 4, 5).requires_grad_()
    (expected,) = torch.autograd.grad(one_after_the_other(block, x).square().sum(), x)
    fused = block.fuse()
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert all(parameter.is_contiguous() and parameter.is_leaf for parameter in fused.parameters())
    torch.testing.assert_close(torch.autograd.grad(fused(x).square().sum(), x)[0], expected, rtol=1e-10, atol=1e-10)


def test_fusing_leaves_a_copy_as_it_was():
    block = make_block("batch norm")
    weights = copy.deepcopy(block.state_dict())
    copy.deepcopy(block).fuse()
    assert block.training and all(parameter.requires_grad for parameter in block.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in block.state_dict().items())


def test_meta_device():
    with torch.device("meta"):
        fused = ContainerBlock(12, 3).fuse()
        assert fused(torch.empty(1, 12, 4, 4)).shape == (1, 12, 4, 4)
    fused = fused.to_empty(device="cpu")
    fused.load_state_dict(ContainerBlock(12, 3).fuse().state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_all_but_matrices_in_float32(dtype):
    """What is added or multiplied channel by channel is not rounded, and not converted in every call."""
    block = randomized(make_block("layer norm", training=False, dim=16))
    block.norm2 = nn.BatchNorm2d(16).eval()
    block, x = block.float(), image(2, 16, 5, 6, dtype=dtype)
    exact = one_after_the_other(copy.deepcopy(block).double(), x.double())
    eager = one_after_the_other(copy.deepcopy(block).to(dtype), x)
    fused = copy.deepcopy(block).fuse()
    weights = copy.deepcopy(fused.state_dict())
    fused.to(dtype)
    matrices = {f"fused_aggregation.{n}_weight" for n in ("in", "out")} | {"fused_mlp.w1", "fused_mlp.w2"}
    norm = {"fused_aggregation.norm.weight", "fused_aggregation.norm.bias"}  # called, so it is as PyTorch wants it
    for name, parameter in fused.named_parameters():
        assert parameter.dtype == (dtype if name in matrices | norm else torch.float32), name
        assert name in matrices | norm or torch.equal(parameter, weights[name])
    out = fused(x)
    assert out.dtype == dtype
    error, allowed = ((y - exact).abs().max() for y in (out, eager))
    assert error <= 2 * allowed
    # Converted before, the weights are those of a network of that dtype; sums stay wide.
    assert copy.deepcopy(block).to(dtype).fuse().fused_mlp.b1.dtype == torch.float32
    assert {parameter.dtype for parameter in fused.double().parameters()} == {torch.float64}


class Operations(TorchDispatchMode):
    """What runs, but for views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(str(func).removesuffix(".default"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dynamic", [True, False], ids=["mix", "static"])
def test_a_block_is_five_operations(dynamic, dtype):
    """No arithmetic on weights, no conversion, no copy."""
    fused = make_block("batch norm", dynamic=dynamic).fuse().to(dtype)
    x = image(2, 12, 5, 6, dtype=dtype)
    with torch.no_grad(), use_backend("cpu"), Operations() as operations:
        fused(x)
    ops = ("local_aggregation", "projection", "context_aggregation", "projection", "fused_mlp")
    expected = [op if dynamic or op != "context_aggregation" else "local_aggregation" for op in ops]
    assert operations.names == [f"container_kernels.{op}_forward_cpu" for op in expected]


def saved(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("norm", ["batch norm", "layer norm"])
def test_saved_and_loaded(norm):
    x = image(2, 12, 4, 5)
    source, target = (randomized(make_block(norm), seed).fuse() for seed in (1, 2))
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(saved(source.state_dict()))
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("norm", ["batch norm", "layer norm"])
def test_weights_of_the_other_kind_are_refused(norm, strict):
    fused, block = make_block(norm).fuse(), make_block(norm)
    message = "block is fused, the weights are not: load them before fuse"
    with pytest.raises(RuntimeError, match=message):
        nn.ModuleDict({"block": fused}).load_state_dict(nn.ModuleDict({"block": block}).state_dict(), strict)
    message = r"weights are of a fused network, ContainerBlock is not fused: call fuse\(\), then load them"
    with pytest.raises(RuntimeError, match=message):
        block.load_state_dict(fused.state_dict(), strict)
    # No weights at all are not of another kind.
    assert len(fused.load_state_dict({}, strict=False).missing_keys) == len(fused.state_dict())
    block.load_state_dict({}, strict=False)


def test_no_name_is_in_both_state_dicts():
    block = make_block("layer norm")
    block.pos_embed, block.mlp = CalledLayer(block.pos_embed), CalledLayer(block.mlp)
    names = set(block.state_dict())
    fused = block.fuse()
    assert isinstance(fused, FusedContainerBlock) and all(name.startswith("fused_") for name in fused.state_dict())
    assert names.isdisjoint(fused.state_dict())


def test_bad_images():
    fused = ContainerBlock(12, 3, static="dense", grid_size=(4, 5)).fuse()
    with pytest.raises(ValueError, match=r"x: expected \(B, C, H, W\) with C = 12, got \(1, 11, 4, 5\)"):
        fused(torch.randn(1, 11, 4, 5))
    with pytest.raises(ValueError, match=r"x: expected H, W = \(4, 5\), which the dense affinity fixes, got \(5, 4\)"):
        fused(torch.randn(1, 12, 5, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_channel_affine(dtype):
    layer = ChannelAffine(torch.randn(8), torch.randn(8)).to(dtype)
    x = torch.randn(2, 8, 3, 4).to(dtype, memory_format=torch.channels_last)
    y = layer(x)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    expected = x.double() * layer.fused_scale.double().view(-1, 1, 1) + layer.fused_shift.double().view(-1, 1, 1)
    torch.testing.assert_close(y, expected.to(dtype))
    with pytest.raises(ValueError, match=r"x: expected \(B, C, H, W\) with C = 8, got \(2, 7, 3, 4\)"):
        layer(x[:, 1:])
