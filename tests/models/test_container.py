"""The networks as backbones: everything a timm user asks of one."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from tiny_networks import ISOTROPIC, PYRAMIDS
from tiny_networks import tiny as tiny_network

from container_kernels import use_backend
from container_kernels.models import Container

DEPTHS_AND_DIMS = ((3, 64), (4, 128), (8, 320), (3, 512))


def tiny(**arguments):
    return tiny_network("container_light", **arguments)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("container", 22_434_234),
        ("container_light", 20_633_643),
        ("container_tiny", 1_072_685),
        # The container without its 5×5 filters, their biases and the gates.
        ("h_deit", 22_434_234 - sum(n * (26 * dim + 1) for n, dim in DEPTHS_AND_DIMS)),
        # The container without queries, keys and gates.
        ("container_depthwise", 22_434_234 - sum(n * (2 * dim * (dim + 1) + 1) for n, dim in DEPTHS_AND_DIMS)),
    ],
)
def test_parameter_counts(name, parameters):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_registered_with_timm():
    assert {"container", "container_light", "container_tiny"} <= set(timm.list_models("container*"))
    config = timm.create_model("container_light", device="meta").pretrained_cfg
    assert config["input_size"] == (3, 224, 224) and config["crop_pct"] == 0.875
    assert config["interpolation"] == "bicubic" and config["mean"] == (0.485, 0.456, 0.406)


def test_stages_of_the_variants():
    dynamic = [[block.aggregation.dynamic for block in stage.blocks] for stage in tiny().stages]
    assert dynamic == [[False], [False], [False, False], [True]]
    expected = {"container": (True, "local"), "h_deit": (True, None), "container_depthwise": (False, "local")}
    for name, settings in expected.items():
        layers = [block.aggregation for stage in tiny_network(name).stages for block in stage.blocks]
        assert {(layer.dynamic, layer.static) for layer in layers} == {settings}


def test_usual_arguments():
    model = tiny(in_chans=1, drop_rate=0.5, drop_path_rate=0.4, global_pool="max", img_size=64)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 10)
    assert model.head.drop.p == 0.5
    # Stochastic depth rises linearly over all five blocks.
    probabilities = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert probabilities == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    with pytest.raises(TypeError, match="drop_path_rat"):
        tiny(drop_path_rat=0.1)
    with pytest.raises(
        ValueError, match=r"depths: expected one value, or 4, one per stage of embed_dims, got 2: \(2, 3\)"
    ):
        Container(depths=(2, 3))


def test_block_settings_reach_every_block():
    model = tiny(qkv_bias=False, proj_drop_rate=0.2, norm_layer=lambda dim: torch.nn.GroupNorm(1, dim), kernel_size=3)
    blocks = [block for stage in model.stages for block in stage.blocks]
    for block in blocks:
        assert block.aggregation.in_proj.bias is None and block.aggregation.proj_drop.p == 0.2
        assert isinstance(block.norm1, torch.nn.GroupNorm) and block.aggregation.local_weight.shape[-1] == 3
    assert isinstance(model.norm, torch.nn.GroupNorm)


def test_head_initialisation_follows_the_release():
    head = timm.create_model("container_light").get_classifier()
    assert 0.018 < head.weight.std() < 0.022 and not head.bias.count_nonzero()


def test_forward_parts():
    model = tiny().eval()
    x = torch.randn(2, 3, 64, 96)
    features = model.forward_features(x)
    assert features.shape == (2, 48, 2, 3)
    torch.testing.assert_close(model.forward_head(features), model(x))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean((2, 3)))


def test_reset_classifier():
    model = tiny()
    x = torch.randn(2, 3, 32, 32)
    model.reset_classifier(7)
    assert model.get_classifier().out_features == model.num_classes == model(x).shape[1] == 7
    model.reset_classifier(0)
    assert model(x).shape == (2, 48)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 48, 1, 1)
    assert tiny(num_classes=0)(x).shape == (2, 48)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (-2,)])
@pytest.mark.parametrize("kind", [None, "getter", "hook", "dict", "fx"])
def test_features_only(kind, out_indices):
    options = {} if kind is None else {"feature_cls": kind}
    if kind == "fx":
        pytest.importorskip("torchvision", reason="timm's fx features are torchvision's")
    model = tiny(features_only=True, out_indices=out_indices, **options).eval()
    x = torch.randn(1, 3, 97, 131)  # odd on purpose: the strides drop the remainder
    features = model(x)
    features = list(features.values()) if isinstance(features, dict) else features
    expected = [(channels, 97 // 4 // 2**i, 131 // 4 // 2**i) for i, channels in enumerate((16, 24, 32, 48))]
    assert [tuple(f.shape[1:]) for f in features] == [expected[i] for i in out_indices]
    assert model.feature_info.channels() == [expected[i][0] for i in out_indices]
    assert model.feature_info.reduction() == [(4, 8, 16, 32)[i] for i in out_indices]


def test_forward_intermediates():
    model = tiny().eval()
    x = torch.randn(1, 3, 64, 64)
    final, all_stages = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert [f.shape[1] for f in all_stages] == [16, 24, 32, 48]
    normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed[0], final)
    early = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
    for a, b in zip(early, all_stages, strict=False):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="output_fmt: expected \"NCHW\", got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_prune_intermediate_layers():
    model = tiny().eval()
    x = torch.randn(1, 3, 64, 64)
    before = model.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    assert model.prune_intermediate_layers([0, 2]) == [0, 2]
    after = model.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    assert len(model.stages) == 3 and model.num_features == 32
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)
    assert model(x).shape == (1, 32, 4, 4)
    model.reset_classifier(5, "avg")
    assert model(x).shape == (1, 5)


def test_group_matcher_orders_every_parameter():
    model = tiny()
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    scales = [
        scale[id(p)]
        for p in (
            model.stages[0].downsample.proj.weight,
            model.stages[0].blocks[0].aggregation.in_proj.weight,
            model.stages[2].blocks[1].aggregation.in_proj.weight,
            model.head.fc.weight,
        )
    ]
    assert scales == sorted(scales) and len(set(scales)) == 4 and scales[-1] == 1
    assert scale[id(model.stages[1].downsample.proj.weight)] > scales[1]
    # Gates, biases, norms decay to nothing: timm knows them by shape.
    assert id(model.stages[3].blocks[0].aggregation.gate) in {
        id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]
    }


def test_grad_checkpointing_recomputes_the_same_gradients():
    model = tiny().train()
    x = torch.randn(2, 3, 64, 64)
    calls = []
    for stage in model.stages:
        for block in stage.blocks:
            block.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert len(calls) == 5
    calls.clear()
    model.set_grad_checkpointing()
    again = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert len(calls) == 10
    calls.clear()
    with torch.no_grad():
        model(x)
    assert len(calls) == 5
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


def test_per_stage_settings():
    """One call says what each stage is made of."""
    model = timm.create_model(
        "container",
        img_size=(64, 32),
        embed_dims=(12, 16, 24, 32),
        depths=(1, 2, 1, 1),
        num_heads=(1, 2, 3, 4),
        mlp_ratios=(1, 2, 3, 4),
        dynamic=(False, True, True, False),
        static=("local", "both", None, "dense"),
        kernel_size=(3, 7, 5, 1),
        mixing=("gate", "free", "free", "gate"),
        num_classes=5,
    )
    blocks = [stage.blocks[0] for stage in model.stages]
    assert [len(stage.blocks) for stage in model.stages] == [1, 2, 1, 1]
    assert [block.aggregation.num_heads for block in blocks] == [1, 2, 3, 4]
    assert [block.mlp.fc1.out_features // block.mlp.fc1.in_features for block in blocks] == [1, 2, 3, 4]
    assert [block.aggregation.dynamic for block in blocks] == [False, True, True, False]
    assert [block.aggregation.mixing for block in blocks] == [None, "free", None, None]
    weights = [block.aggregation.local_weight for block in blocks]
    assert [None if weight is None else tuple(weight.shape) for weight in weights] == [
        (12, 3, 3),
        (16, 7, 7),
        None,
        None,
    ]
    affinities = [block.aggregation.affinity for block in blocks]
    assert [None if a is None else tuple(a.shape) for a in affinities] == [None, (2, 32, 32), None, (4, 2, 2)]
    assert model(torch.randn(1, 3, 64, 32)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"x: expected H, W = \(8, 4\), which the dense affinity fixes, got \(4, 8\)"):
        model(torch.randn(1, 3, 32, 64))
    for name, value in {"strides": (4,), "kernel_size": (3, 5), "static": ["local"]}.items():
        with pytest.raises(
            ValueError, match=rf"{name}: expected one value, or 4, one per stage of embed_dims, got \d: \("
        ):
            tiny(**{name: value})


DENSE = {"dense": ("dense", "dense", None, "dense"), "both": ("both", "local", "both", "both")}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("h_deit", {}),
        ("container_depthwise", {}),
        *(("container", {"static": static, "img_size": (64, 32)}) for static in DENSE.values()),
        ("container", {"static": DENSE["both"], "img_size": (64, 32), "dynamic": (False, True, True, False)}),
    ],
    ids=["h_deit", "container_depthwise", "dense", "both", "both, static"],
)
def test_backends_agree(name, settings):
    """In results and in gradients."""
    model, x, runs = tiny_network(name, **settings), torch.randn(3, 3, 64, 32), []
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            y = model(x)
            runs.append((y, *torch.autograd.grad(y.square().mean(), list(model.parameters()))))
    # A constant that a norm removes has gradient zero, and is rounding noise: no scale of its own.
    largest = max(gradient.abs().max() for gradient in runs[1][1:])
    for ours, reference in zip(*runs, strict=True):
        scale = reference.abs().max().clamp(min=1e-2 * largest)
        torch.testing.assert_close(ours / scale, reference / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["container_light", "deit_small"])
def test_images_are_checked_at_the_door(name):
    """Also of a backbone, whose last stages may be gone; an isotropic network has a size of its own."""
    model = tiny_network(name, embed_dim=24) if name == "deit_small" else tiny()
    for shape in ((3, 32, 32), (2, 32, 32), (2, 4, 32, 32), (2, 1, 3, 32, 32)):
        for run in (model, model.forward_features, model.forward_intermediates):
            with pytest.raises(ValueError, match=rf"images \(B, C, H, W\) with C = 3, got \({shape[0]}, {shape[1]}"):
                run(torch.randn(shape))
    with pytest.raises(TypeError, match="x: expected a tensor"):
        model([1])


def test_image_smaller_than_the_strides():
    with pytest.raises(ValueError, match="x: expected at least 32×32 pixels to embed, got 16×40"):
        tiny()(torch.randn(1, 3, 16, 40))
    first = tiny(features_only=True, out_indices=(0, 1))
    assert [y.shape[-1] for y in first(torch.randn(2, 3, 8, 8))] == [2, 1]
    with pytest.raises(ValueError, match="x: expected at least 2×2 pixels to embed, got 1×2"):
        first(torch.randn(2, 3, 7, 8))


def test_patches_by_a_wrapped_convolution():
    """As an adapter wraps layers: what calls the convolution has none of its attributes."""

    class Wrapped(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.base_layer = layer

        def forward(self, x):
            return self.base_layer(x)

    model = tiny().eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    model.stages[0].downsample.proj = Wrapped(model.stages[0].downsample.proj)
    torch.testing.assert_close(model(x), expected)


def test_one_value_for_all_stages():
    model = tiny(num_heads=1, depths=1, mlp_ratios=3, strides=2)
    blocks = [stage.blocks for stage in model.stages]
    assert [len(stage) for stage in blocks] == [1] * 4
    assert {stage[0].aggregation.num_heads for stage in blocks} == {1}
    assert [stage[0].mlp.fc1.out_features for stage in blocks] == [3 * dim for dim in (16, 24, 32, 48)]
    with pytest.raises(ValueError, match=r"num_heads: expected one value, or 4, one per stage of embed_dims, got 2"):
        tiny(num_heads=(1, 2))


def test_trains_as_plain_pytorch_does():
    """Six steps with the kernels and six without: same losses, same weights."""
    x, y = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    runs = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(0)
        model = timm.create_model("container_tiny", num_classes=10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        with use_backend(backend):
            for _ in range(6):
                loss = torch.nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        runs.append((losses, model.state_dict()))
    assert runs[0][0][-1] < 0.5 * runs[0][0][0]
    assert runs[0][0] == pytest.approx(runs[1][0], rel=2e-3)
    for name, value in runs[0][1].items():
        torch.testing.assert_close(
            value, runs[1][1][name], rtol=1e-2, atol=2e-3, msg=lambda m, name=name: f"{name}: {m}"
        )


# A block of each kind.
TWO_STAGES = {"embed_dims": (16, 24), "depths": (1, 1), "num_heads": (1, 2), "mlp_ratios": (2, 3), "strides": (4, 2)}
KINDS = [
    ("container_light", TWO_STAGES | {"dynamic": (False, True)}),
    ("h_deit", TWO_STAGES),
    ("container_depthwise", TWO_STAGES),
]


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_compiles_as_one_graph(name, settings, fresh_compiler):
    model = tiny_network(name, **settings).eval()
    x = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_exports_to_plain_pytorch(name, settings):
    """Any batch and image size, by the default export."""
    model = tiny_network(name, **settings).eval()
    x = torch.randn(2, 3, 64, 96)
    program = torch.export.export(model, (x,), dynamic_shapes=({i: torch.export.Dim.AUTO for i in (0, 2, 3)},))
    assert not any("container_kernels" in str(node.target) for node in program.graph.nodes)
    other = torch.randn(3, 3, 128, 64)
    torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.parametrize("name", [*PYRAMIDS, *ISOTROPIC])
def test_deterministic_construction(name):
    torch.manual_seed(3)
    first = tiny_network(name).state_dict()
    torch.manual_seed(3)
    second = tiny_network(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
