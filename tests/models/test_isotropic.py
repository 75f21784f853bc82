"""DeiT, MLP-Mixer and their relatives as backbones: everything a timm user asks of one."""

import copy

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import reparameterize_model
from tiny_networks import ISOTROPIC, tiny, trained
from torch import nn

from container_kernels import use_backend
from container_kernels.models import ColumnContainer, IsotropicContainer, load_checkpoint
from container_kernels.modules import ContainerBlock
from container_kernels.modules.fused_block import ChannelAffine, FusedContainerBlock

EXACT = {"rtol": 1e-10, "atol": 1e-10}
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


def image(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("deit_tiny", 5_717_416),
        ("deit_small", 22_050_664),
        # Twelve layers: 6 heads of 197 × 197, alpha and beta.
        ("container_pam", 22_050_664 + 12 * (6 * 197 * 197 + 2)),
        ("mixer", 59_880_472),
        # Twelve layers: 11 more heads with matrices 384 × 196 and 196 × 384 and their biases.
        ("mh_mixer", 59_880_472 + 12 * 11 * (2 * 384 * 196 + 384 + 196)),
    ],
)
def test_parameter_counts(name, parameters):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert timm.is_model(name) and model.pretrained_cfg["fixed_input_size"]


@pytest.mark.parametrize("name", ISOTROPIC)
def test_usual_arguments(name):
    pooled = {"global_pool": "max"}
    model = tiny(name, in_chans=1, drop_rate=0.5, proj_drop_rate=0.2, drop_path_rate=0.4, img_size=(16, 24), **pooled)
    assert model(image(2, 1, 16, 24)).shape == (2, 10)
    assert model.head_drop.p == 0.5 and model.blocks[1].mlp.drop1.p == 0.2
    # Stochastic depth rises linearly over the blocks.
    assert [getattr(b.drop_path, "drop_prob", 0.0) for b in model.blocks] == pytest.approx([0, 0.2, 0.4])
    with pytest.raises(TypeError, match="drop_path_rat"):
        tiny(name, drop_path_rat=0.1)


def test_settings_of_the_variants():
    """What each is made of: (dynamic, static, heads, mixing, class token)."""
    settings = {}
    for name in (*ISOTROPIC, "deit_tiny"):
        model = timm.create_model(name, device="meta")
        layers = {(a.dynamic, a.static, a.num_heads, a.mixing) for a in (block.aggregation for block in model.blocks)}
        assert len(model.blocks) == 12 and all(type(block) is ContainerBlock for block in model.blocks)
        settings[name] = (*layers.pop(), model.cls_token is not None, model.pos_embed is not None)
        assert not layers
    assert settings == {
        "deit_small": (True, None, 6, None, True, True),
        "deit_tiny": (True, None, 3, None, True, True),
        "container_pam": (True, "dense", 6, "free", True, True),
        "mixer": (False, "dense", 1, None, False, False),
        "mh_mixer": (False, "dense", 12, None, False, False),
    }


def test_every_affinity_without_class_token():
    for static in ("local", "both"):
        model = tiny("deit_small", class_token=False, global_pool="avg", static=static, kernel_size=3)
        assert model.blocks[0].aggregation.local_weight.shape == (24, 3, 3)
        assert model(image(2, 3, 32, 32)).shape == (2, 10)
        with pytest.raises(ValueError, match=f"class_token: expected False because static='{static}' has a window"):
            tiny("deit_small", static=static)


def test_initialization():
    model = timm.create_model("deit_tiny")
    for tensor in (model.pos_embed, model.cls_token, model.head.weight, model.blocks[3].aggregation.in_proj.weight):
        assert 0.015 < tensor.std() < 0.025 and tensor.abs().max() <= 2
    assert not any(
        p.count_nonzero() for name, p in model.named_parameters() if "proj.bias" in name and "patch" not in name
    )
    assert not model.blocks[0].mlp.fc2.bias.count_nonzero() and not model.head.bias.count_nonzero()
    model.reset_classifier(2000)
    assert 0.018 < model.head.weight.std() < 0.022


@pytest.mark.parametrize("name", ISOTROPIC)
def test_forward_parts(name):
    model, x = trained(tiny(name)).eval(), image(2, 3, 32, 32)
    features = model.forward_features(x)
    prefix = model.num_prefix_tokens
    assert features.shape == (2, prefix + 16, 24)
    torch.testing.assert_close(model.forward_head(features), model(x))
    pooled = features[:, 0] if prefix else features.mean(1)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    # Pooling of patches leaves the class token out.
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model(x), features[:, prefix:].mean(1))
    # The layout of the image changes nothing.
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), model(x))


@pytest.mark.parametrize("name", ISOTROPIC)
def test_reset_classifier(name):
    model, x = tiny(name), image(2, 3, 32, 32)
    model.reset_classifier(7)
    assert model.get_classifier().out_features == model.num_classes == model(x).shape[1] == 7
    model.reset_classifier(0)
    assert model(x).shape == (2, 24)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_prefix_tokens + 16, 24)
    assert tiny(name, num_classes=0)(x).shape == (2, 24)


def test_pooling_that_cannot_be():
    for make in (lambda: tiny("mixer", global_pool="token"), lambda: tiny("mixer").reset_classifier(3, "token")):
        with pytest.raises(ValueError, match=r'global_pool: expected .* because class_token=False, got "token"'):
            make()
    with pytest.raises(ValueError, match=r"global_pool: expected one of \('', 'token', .*, got 'mean'"):
        tiny("deit_small", global_pool="mean")


@pytest.mark.parametrize("name", ISOTROPIC)
@pytest.mark.parametrize("out_indices", [(0, 2), (-2,), 1])
def test_features_only(name, out_indices):
    model = trained(tiny(name, features_only=True, out_indices=out_indices, img_size=(16, 24))).eval()
    whole = trained(tiny(name, img_size=(16, 24))).eval()
    x = image(1, 3, 16, 24)
    expected = whole.forward_intermediates(x, indices=out_indices, intermediates_only=True)
    features = model(x)
    assert [f.shape for f in features] == [(1, 24, 2, 3)] * len(expected)
    assert model.feature_info.channels() == [24] * len(expected)
    assert model.feature_info.reduction() == [8] * len(expected)
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["fx", "hook"])
@pytest.mark.parametrize("name", ["container_pam", "mixer"])
def test_other_extractors_give_what_blocks_give(name, kind):
    if kind == "fx":
        pytest.importorskip("torchvision", reason="timm's fx features are torchvision's")
    model = tiny(name, features_only=True, feature_cls=kind, out_indices=(0, 2)).eval()
    grid = (4, 4) if name == "mixer" else (17, 1)
    assert [y.shape for y in model(image(2, 3, 32, 32))] == [(2, 24, *grid)] * 2


@pytest.mark.parametrize("name", ISOTROPIC)
def test_forward_intermediates(name):
    model, x = trained(tiny(name)).eval(), image(2, 3, 32, 32)
    final, all_blocks = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert [y.shape for y in all_blocks] == [(2, 24, 4, 4)] * 3
    normed = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)[0]
    torch.testing.assert_close(normed, final[:, model.num_prefix_tokens :])
    early = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
    for a, b in zip(early, all_blocks, strict=False):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match='output_fmt: expected "NCHW" or "NLC", got \'NHWC\''):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_prefix_tokens():
    x = image(2, 3, 32, 32)
    model = trained(tiny("deit_small")).eval()
    pairs = model.forward_intermediates(x, indices=1, return_prefix_tokens=True, norm=True, intermediates_only=True)
    (y, prefix) = pairs[0]
    assert y.shape == (2, 24, 4, 4)
    torch.testing.assert_close(prefix, model.forward_features(x)[:, :1])
    # Without such tokens there is nothing to pair, as in timm.
    outputs = tiny("mixer").forward_intermediates(x, indices=1, return_prefix_tokens=True, intermediates_only=True)
    assert outputs[0].shape == (2, 24, 4, 4)


@pytest.mark.parametrize("name", ISOTROPIC)
def test_prune_intermediate_layers(name):
    model, x = trained(tiny(name)).eval(), image(2, 3, 32, 32)
    before = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    model.set_grad_checkpointing()
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    after = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert len(model.blocks) == 2 and isinstance(model.norm, nn.Identity) and model.blocks.grad_checkpointing
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)
    assert model(x).shape == (2, model.num_prefix_tokens + 16, 24)


@pytest.mark.parametrize("name", ISOTROPIC)
def test_group_matcher_orders_every_parameter(name):
    model = tiny(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    ordered = (model.patch_embed.proj.weight, model.blocks[0].mlp.fc1.weight, model.blocks[2].mlp.fc1.weight)
    scales = [scale[id(p)] for p in (*ordered, model.head.weight)]
    assert scales == sorted(scales) and len(set(scales)) == 4 and scales[-1] == 1
    for parameter in (model.cls_token, model.pos_embed):
        assert parameter is None or scale[id(parameter)] == scales[0]


@pytest.mark.parametrize("name", ISOTROPIC)
def test_weight_decay_is_for_matrices(name):
    model = tiny(name)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    matrices = ("weight", "affinity", "token_mlp.w1", "token_mlp.w2")
    assert decayed == {name for name in names.values() if name.endswith(matrices) and "norm" not in name}


@pytest.mark.parametrize("name", ISOTROPIC)
def test_grad_checkpointing_recomputes_the_same_gradients(name):
    model, x = trained(tiny(name)).train(), image(2, 3, 32, 32)
    calls = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert len(calls) == 3
    model.set_grad_checkpointing()
    for forward in (model, lambda x: model.forward_head(model.forward_intermediates(x)[0])):
        calls.clear()
        again = torch.autograd.grad(forward(x).square().sum(), list(model.parameters()))
        assert len(calls) == 6
        for a, b in zip(plain, again, strict=True):
            torch.testing.assert_close(a, b)
    calls.clear()
    with torch.no_grad():
        model(x)
    assert len(calls) == 3


def test_wrong_size_of_image():
    with pytest.raises(ValueError, match=r"x: expected 32×32 pixels, got 32×40: .* which set_input_size\(\) changes"):
        tiny("deit_small")(image(1, 3, 32, 40))
    with pytest.raises(ValueError, match="x: expected 32×32 pixels, got 224×224: "):
        tiny("mixer")(image(1, 3, 224, 224))
    with pytest.raises(ValueError, match=r"img_size: expected at least one patch of \(8, 8\) pixels, got \(32, 7\)"):
        tiny("deit_small", img_size=(32, 7))
    # Nothing else fixes the size: attention and convolutions take any.
    free = tiny("deit_small", pos_embed=False)
    assert free(image(1, 3, 32, 41)).shape == free(image(1, 3, 64, 8)).shape == (1, 10)
    assert free.forward_intermediates(image(1, 3, 32, 41))[1][0].shape == (1, 24, 4, 5)
    with pytest.raises(ValueError, match="x: expected at least 8×8 pixels to embed, got 32×4"):
        free(image(1, 3, 32, 4))


@pytest.mark.parametrize("name", ISOTROPIC)
def test_backends_agree(name):
    model, x = trained(tiny(name)), image(2, 3, 32, 32)
    runs = []
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            y = model(x)
            runs.append((y, *torch.autograd.grad(y.square().mean(), list(model.parameters()))))
    # A constant that a norm removes has gradient zero, and is rounding noise: no scale of its own.
    largest = max(reference.abs().max() for reference in runs[1][1:])
    for ours, reference in zip(*runs, strict=True):
        scale = reference.abs().max().clamp(min=1e-2 * largest)
        torch.testing.assert_close(ours / scale, reference / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ISOTROPIC)
def test_compiles_as_one_graph(name, fresh_compiler):
    model, x = trained(tiny(name, depth=1)).eval(), image(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("name", ISOTROPIC)
@pytest.mark.parametrize("fused", [False, True])
def test_exports_to_plain_pytorch(name, fused):
    """Any batch, by the default export."""
    model = trained(tiny(name, depth=1)).eval()
    model = model.fuse() if fused else model
    program = torch.export.export(model, (image(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert not any("container_kernels" in str(node.target) for node in program.graph.nodes)
    other = image(3, 3, 32, 32)
    torch.testing.assert_close(program.module()(other), model(other), **FLOAT32)


@torch.no_grad()
@pytest.mark.parametrize("norm", [{}, {"norm_layer": nn.BatchNorm2d}], ids=["layer norm", "batch norm"])
@pytest.mark.parametrize("name", ISOTROPIC)
def test_fuse(name, norm, tmp_path):
    model = trained(tiny(name, drop_path_rate=0.2, **norm).double()).eval()
    x = image(2, 3, 32, 32, dtype=torch.float64)
    expected, features = model(x), model.forward_features(x)
    fused = copy.deepcopy(model).fuse()
    assert {type(block) for block in fused.blocks} == {FusedContainerBlock}
    assert isinstance(fused.norm, ChannelAffine) == bool(norm)
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    torch.testing.assert_close(fused(x), expected, **EXACT)
    torch.testing.assert_close(fused.train().forward_features(x), features, **EXACT)
    torch.testing.assert_close(reparameterize_model(model)(x), expected, **EXACT)
    torch.save(fused.state_dict(), tmp_path / "fused.pth")
    another = tiny(name, **norm).double()
    with pytest.raises(RuntimeError, match=r"the weights are of a fused network, .* is not fused: call fuse\(\)"):
        load_checkpoint(another, tmp_path / "fused.pth", strict=False)
    load_checkpoint(another.fuse(), tmp_path / "fused.pth")
    torch.testing.assert_close(another(x), expected, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("name", ISOTROPIC)
def test_half_precision(name):
    model, x = trained(tiny(name)).eval(), image(2, 3, 32, 32)
    exact = copy.deepcopy(model).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model(x)
    for y in (autocast, model.bfloat16()(x.bfloat16())):
        assert y.dtype == torch.bfloat16
        assert (y - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("name", ISOTROPIC)
def test_learns(name):
    """Every parameter gets a gradient, and a few steps reduce the loss."""
    model, x, y = tiny(name), image(8, 3, 32, 32), torch.arange(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_whole_network_is_copied_and_saved(tmp_path):
    model, x = trained(tiny("container_pam")).eval(), image(2, 3, 32, 32)
    torch.save(model, tmp_path / "model.pth")
    assert torch.equal(torch.load(tmp_path / "model.pth", weights_only=False)(x), model(x))
    assert isinstance(copy.deepcopy(model), IsotropicContainer)


def test_the_old_name_is_kept():
    assert ColumnContainer is IsotropicContainer
