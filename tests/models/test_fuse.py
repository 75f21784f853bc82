"""fuse(): a network for evaluation alone that computes the same, wherever a network is used."""

import copy
import os
import shutil

import pytest
import safetensors.torch
import timm
import torch
from released import golden, golden_input, released_state_dict
from timm.layers import LayerNorm2d
from timm.utils import reparameterize_model
from timm.utils.model import freeze_batch_norm_2d
from torch import nn

from container_kernels.models import load_checkpoint
from container_kernels.modules import ContainerBlock
from container_kernels.modules.fused_block import ChannelAffine, FusedContainerBlock

TINY = {"embed_dims": (16, 24, 32, 48), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 3), "mlp_ratios": (2, 2, 2, 2)}
# A block of each kind.
TWO_STAGES = {
    "embed_dims": (16, 24), "depths": (1, 1), "num_heads": (1, 2), "mlp_ratios": (2, 3), "strides": (4, 2),
    "dynamic": (False, True),
}  # fmt: skip
EXACT = {"rtol": 1e-10, "atol": 1e-10}
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


def tiny(name="container_light", seed=1, **arguments):
    """A network with running statistics, gates, scales and shifts as after training."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **{**TINY, "num_classes": 10, **arguments})
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            leaf = key.rpartition(".")[2]
            if leaf == "running_var" or (tensor.ndim == 1 and leaf == "weight"):
                tensor.uniform_(0.5, 1.5)
            elif leaf in ("running_mean", "gate", "bias"):
                tensor.normal_(std=0.3)
    return model


def image(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(memory_format=torch.channels_last)


def blocks(model):
    return [block for stage in model.stages for block in stage.blocks]


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_computes_what_the_released_network_does(dtype, tolerance):
    model = timm.create_model("container_light").to(dtype)
    model.load_state_dict(released_state_dict())
    logits = model.fuse()(golden_input().to(dtype)).double()
    expected = torch.from_numpy(golden()["logits"]).double()
    assert (logits - expected).abs().max() < tolerance * expected.abs().max()


NETWORKS = {
    "container_light": {},
    "container": {"name": "container"},
    "h_deit": {"name": "h_deit"},
    "container_depthwise": {"name": "container_depthwise"},
    "dense": {"name": "container", "static": ("local", "dense", "both", None), "img_size": (64, 96)},
    "static, free": {"dynamic": (False, True, True, False), "static": ("local", "both", "local", "dense"),
                     "mixing": "free", "img_size": (64, 96)},
    "rates, no bias": {"drop_rate": 0.2, "proj_drop_rate": 0.3, "drop_path_rate": 0.4, "qkv_bias": False},
    "layer norm": {"norm_layer": LayerNorm2d},
    "tanh": {"act_layer": lambda: nn.GELU("tanh")},
    "two stages": TWO_STAGES,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("network", NETWORKS)
def test_every_part_of_the_network(network):
    model = tiny(**NETWORKS[network]).double().eval()
    x = image(2, 3, 64, 96, dtype=torch.float64)
    features, logits = model.forward_features(x), model(x)
    fused = copy.deepcopy(model).fuse()
    torch.testing.assert_close(fused.forward_features(x), features, **EXACT)
    torch.testing.assert_close(fused(x), logits, **EXACT)
    torch.testing.assert_close(reparameterize_model(model)(x), logits, **EXACT)
    (_, ours), (_, expected) = (network.forward_intermediates(x, norm=True) for network in (fused, model))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("convert", [freeze_batch_norm_2d, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_exchanged_norms(convert):
    model, x = tiny().double().eval(), image(2, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    fused = convert(model).fuse()
    assert isinstance(fused.norm, ChannelAffine) and all(block.fused_mlp.norm is None for block in blocks(fused))
    torch.testing.assert_close(fused(x), expected, **EXACT)


def test_in_place_once_and_for_all():
    model = tiny(drop_path_rate=0.2).train()
    assert model.fuse() is model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    modules = list(model.modules())
    assert {type(block) for block in blocks(model)} == {FusedContainerBlock}
    assert list(model.fuse().modules()) == modules
    assert list(reparameterize_model(model, inplace=True).modules()) == modules


@torch.no_grad()
def test_training_mode_is_for_a_new_classifier():
    model, x = tiny(drop_path_rate=0.4, proj_drop_rate=0.4, drop_rate=0.0).eval(), image(2, 3, 64, 64)
    features = model.forward_features(x)
    model.fuse().reset_classifier(5)
    weights = copy.deepcopy(model.state_dict())
    with torch.enable_grad():
        model.train()(x).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"head.fc.weight", "head.fc.bias"}
    torch.testing.assert_close(model.forward_features(x), features, **FLOAT32)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_what_could_not_be_fused_stays_in_evaluation():
    """A final norm that somebody listens to: its statistics must not move when the classifier is trained."""
    model = timm.create_model("container_tiny")
    model.norm.register_forward_hook(lambda *_: None)
    model.fuse().train()
    assert isinstance(model.norm, nn.BatchNorm2d) and model.head.training
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
def test_timms_convention(inplace):
    """timm replaces blocks by what their `fuse` returns, then goes on through the old block's layers."""
    model, x = tiny().double().eval(), image(2, 3, 64, 64, dtype=torch.float64)
    expected, weights = model(x), copy.deepcopy(model.state_dict())
    fused = reparameterize_model(model, inplace=inplace)
    assert (fused is model) == inplace
    assert {type(block) for block in blocks(fused)} == {FusedContainerBlock}
    torch.testing.assert_close(fused.eval()(x), expected, **EXACT)
    if not inplace:
        assert {type(block) for block in blocks(model)} == {ContainerBlock}
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        assert all(parameter.requires_grad for parameter in model.parameters())
    # As a part of another network, a Container's own fuse is called.
    fused = reparameterize_model(nn.Sequential(model), inplace=inplace)
    assert isinstance(fused[0].norm, ChannelAffine)
    torch.testing.assert_close(fused(x), expected, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("kind", [None, "getter", "hook", "dict", "fx"])
def test_features_only(kind):
    options = {} if kind is None else {"feature_cls": kind}
    if kind == "fx":
        pytest.importorskip("torchvision", reason="timm's fx features are torchvision's")
    model, x = tiny(features_only=True, out_indices=(1, 3), **options).eval(), image(1, 3, 97, 131)
    fused = reparameterize_model(model)
    assert not any(isinstance(module, ContainerBlock) for module in fused.modules())
    expected, features = (out.values() if isinstance(out, dict) else out for out in (model(x), fused(x)))
    for a, b in zip(features, expected, strict=True):
        torch.testing.assert_close(a, b, **FLOAT32)


@torch.no_grad()
def test_pruned():
    model, x = tiny().eval(), image(1, 3, 64, 64)
    model.prune_intermediate_layers([0, 2])
    expected = model(x)
    torch.testing.assert_close(model.fuse()(x), expected, **FLOAT32)
    model = tiny().eval()
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    model.fuse().prune_intermediate_layers([1])
    torch.testing.assert_close(model(x), expected, **FLOAT32)


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True], ids=["converted", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, autocast):
    model, x = tiny("container").eval(), image(2, 3, 64, 64)
    exact = copy.deepcopy(model).double()(x.double())
    fused = copy.deepcopy(model).fuse()
    if autocast:
        with torch.autocast("cpu", dtype):
            eager, ours, features = model(x), fused(x), fused.forward_features(x)
    else:
        eager, ours = model.to(dtype)(x.to(dtype)), fused.to(dtype)(x.to(dtype))
        features = fused.forward_features(x.to(dtype))
    assert ours.dtype == features.dtype == dtype
    # Other roundings, but not larger ones.
    assert (ours - exact).norm() <= 2 * (eager - exact).norm()


def test_compiles_as_one_graph(fresh_compiler):
    model, x = tiny(**TWO_STAGES).fuse(), image(1, 3, 64, 64)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x), **FLOAT32)


ANY_SIZE = ({axis: torch.export.Dim.AUTO for axis in (0, 2, 3)},)


def test_exports_to_plain_pytorch(tmp_path):
    model = tiny(**TWO_STAGES).fuse()
    program = torch.export.export(model, (image(2, 3, 64, 96),), dynamic_shapes=ANY_SIZE)
    assert not any("container_kernels" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, tmp_path / "fused.pt2")
    other = image(3, 3, 128, 64)
    torch.testing.assert_close(torch.export.load(tmp_path / "fused.pt2").module()(other), model(other), **FLOAT32)


@torch.no_grad()
def test_half_precision_is_exported_with_matrix_products_of_that_dtype():
    model, x = tiny(**TWO_STAGES).fuse(), image(2, 3, 64, 96)
    exact, half = copy.deepcopy(model).double()(x.double()), model.bfloat16()
    program = torch.export.export(half, (x.bfloat16(),))
    products = [node for node in program.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert len(products) == 2 * 4 + 1 and {node.meta["val"].dtype for node in products} == {torch.bfloat16}
    # The exported program rounds what the kernels keep wide, as layer after layer does.
    exported, ours = ((out.double() - exact).norm() for out in (program.module()(x.bfloat16()), half(x.bfloat16())))
    assert exported <= 4 * ours


@torch.no_grad()
def test_onnx(tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime", reason="runs the exported network")
    model = tiny(**TWO_STAGES).fuse()
    torch.onnx.export(
        model, (image(2, 3, 64, 96),), tmp_path / "fused.onnx", dynamo=True, verbose=False,
        dynamic_shapes=({axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)},),
    )  # fmt: skip
    session = runtime.InferenceSession(tmp_path / "fused.onnx", providers=["CPUExecutionProvider"])
    for x in (image(2, 3, 64, 96), image(3, 3, 128, 64)):
        (out,) = session.run(None, {session.get_inputs()[0].name: x.contiguous().numpy()})
        torch.testing.assert_close(torch.from_numpy(out), model(x), **FLOAT32)


@torch.no_grad()
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_ahead_of_time_compiler(tmp_path):
    model = tiny(**{**TWO_STAGES, "embed_dims": (4, 8)}).fuse()
    program = torch.export.export(model, (image(2, 3, 16, 24),), dynamic_shapes=ANY_SIZE)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "fused.pt2"))
    other = image(3, 3, 32, 16)
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(other), model(other), **FLOAT32)


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_saved_and_loaded(tmp_path, suffix):
    source, target, x = tiny().fuse(), tiny(seed=2).fuse(), image(2, 3, 64, 64)
    path = tmp_path / f"fused{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    assert not torch.equal(source(x), target(x))
    load_checkpoint(target, path)
    assert torch.equal(source(x), target(x))
    timm.models.load_checkpoint(another := tiny(seed=3).fuse(), str(path))
    assert torch.equal(source(x), another(x))


@torch.no_grad()
def test_whole_network_saved(tmp_path):
    model, x = tiny().fuse(), image(2, 3, 64, 64)
    torch.save(model, tmp_path / "model.pth")
    assert torch.equal(torch.load(tmp_path / "model.pth", weights_only=False)(x), model(x))


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_the_other_kind_are_refused(tmp_path, strict):
    """Half of their names are the same: without an error, stems and heads would load and blocks would not."""
    model = tiny()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    torch.save(copy.deepcopy(model).fuse().state_dict(), tmp_path / "fused.pth")
    unfused = r"is fused, the weights are not: load them before fuse\(\)"
    fused = r"the weights are of a fused network, .* is not fused: call fuse\(\), then load them"
    with pytest.raises(RuntimeError, match=unfused):
        load_checkpoint(tiny().fuse(), tmp_path / "model.pth", strict=strict)
    with pytest.raises(RuntimeError, match=fused):
        load_checkpoint(tiny(), tmp_path / "fused.pth", strict=strict)
    with pytest.raises(RuntimeError, match=fused):
        tiny(checkpoint_path=str(tmp_path / "fused.pth"))
    with pytest.raises(RuntimeError, match=unfused):
        timm.create_model("container_light").fuse().load_state_dict(released_state_dict(), strict=strict)
    # Backbones name their stages otherwise, and have no final norm.
    backbone = tiny(features_only=True)
    weights = backbone.state_dict()
    with pytest.raises(RuntimeError, match=unfused):
        reparameterize_model(backbone).load_state_dict(weights, strict=strict)
    with pytest.raises(RuntimeError, match=fused):
        backbone.load_state_dict(reparameterize_model(backbone).state_dict(), strict=strict)


def test_a_final_norm_of_the_other_kind_is_refused():
    """timm's function leaves the final norm."""
    model, partly = tiny().fuse(), reparameterize_model(tiny())
    with pytest.raises(RuntimeError, match="norm is fused, the weights are not: load them before fuse"):
        model.load_state_dict(partly.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="the weights are of a fused network, norm is not fused: call fuse"):
        partly.load_state_dict(model.state_dict(), strict=False)
    partly.fuse().load_state_dict(model.state_dict())
