"""Another size of image: what belongs to a grid is resized, on loading and in place, by one rule."""

import re

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from tiny_networks import tiny, trained

from container_kernels.models import IsotropicContainer, load_checkpoint
from container_kernels.models.checkpoint import checkpoint_filter_fn
from container_kernels.modules import ContextAggregation

# Networks that a size of image is built into, and what of them belongs to the grid.
FIXED = {
    "deit_small": {"pos_embed"},
    "container_pam": {"pos_embed", "affinity"},
    "mixer": {"token_mlp.w1", "token_mlp.w2", "token_mlp.b2"},
    "mh_mixer": {"token_mlp.w1", "token_mlp.w2", "token_mlp.b2"},
    "container": {"affinity"},
}


def fixed(name, img_size, seed=1):
    dense = {"static": ("dense", "local", "both", None), "strides": (2, 2, 2, 2)} if name == "container" else {}
    return trained(tiny(name, img_size=img_size, **dense), seed).double().eval()


def same(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", FIXED)
def test_the_same_size_changes_nothing(name):
    model = fixed(name, (32, 48))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    same(checkpoint_filter_fn(weights, fixed(name, (32, 48), seed=2)), weights)
    model.set_input_size((32, 48))
    same(model.state_dict(), weights)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [((32, 32), (48, 32)), ((32, 48), (64, 96))], ids=str)
@pytest.mark.parametrize("name", FIXED)
def test_loading_is_set_input_size(name, sizes, tmp_path):
    """From a square, or from the same ratio of sides."""
    old, new = sizes
    model = fixed(name, old)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = fixed(name, new, seed=2)
    load_checkpoint(loaded, tmp_path / "weights.pth")
    changed = {key for key, tensor in model.state_dict().items() if tensor.shape != loaded.state_dict()[key].shape}
    assert changed and all(key.endswith(tuple(FIXED[name])) for key in changed)
    assert {leaf for leaf in FIXED[name] if any(key.endswith(leaf) for key in changed)} == FIXED[name]
    model.set_input_size(new)
    same(loaded.state_dict(), model.state_dict())
    x = torch.randn(2, 3, *new, dtype=torch.float64)
    torch.testing.assert_close(loaded(x), model(x))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in loaded.parameters()]


def test_as_many_tokens_are_the_same_grid():
    """A state dict does not tell 4×4 from 2×8."""
    model = fixed("container_pam", (32, 32))
    same(checkpoint_filter_fn(model.state_dict(), fixed("container_pam", (16, 64))), model.state_dict())


@pytest.mark.parametrize("name", FIXED)
def test_every_door_that_filters(name, tmp_path):
    """timm's `pretrained` resizes as `load_checkpoint` does; a plain state dict has to fit."""
    model = fixed(name, (32, 32)).float()
    torch.save(model.state_dict(), path := tmp_path / "weights.pth")
    expected = fixed(name, (64, 64)).float()
    load_checkpoint(expected, path)
    dense = {"static": ("dense", "local", "both", None), "strides": (2, 2, 2, 2)} if name == "container" else {}
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path), "num_classes": 10}}
    same(tiny(name, img_size=64, **dense, **overlay).state_dict(), expected.state_dict())
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="size mismatch"):
            fixed(name, (64, 64)).load_state_dict(model.state_dict(), strict=strict)


@torch.no_grad()
def test_constants_are_answered_as_before():
    """Rows of affinities keep their sums over the grid; the class token keeps its row and column."""
    model = fixed("container_pam", (32, 48))
    before = [block.aggregation.affinity.clone() for block in model.blocks]
    position = model.pos_embed.clone()
    model.set_input_size((64, 32))
    for block, old in zip(model.blocks, before, strict=True):
        new = block.aggregation.affinity
        assert new.shape == (3, 1 + 8 * 4, 1 + 8 * 4)
        assert torch.equal(new[:, 0, 0], old[:, 0, 0])
        torch.testing.assert_close(new[:, 0, 1:].sum(-1), old[:, 0, 1:].sum(-1))
        column, rows = (_resize(old[:, 1:, :].transpose(1, 2)[:, i]) for i in (0, slice(1, None)))
        torch.testing.assert_close(new[:, 1:, 0], column)
        # To constant values: what the old grid answered, resized.
        torch.testing.assert_close(new[:, 1:, 1:].sum(-1), rows.sum(1))
    assert torch.equal(model.pos_embed[:, 0], position[:, 0])


def _resize(y):
    """(…, 4·6) on the old grid to (…, 8·4) on the new."""
    images = y.reshape(1, -1, 4, 6)
    resized = torch.nn.functional.interpolate(images, (8, 4), mode="bicubic", antialias=True, align_corners=False)
    return resized.reshape(*y.shape[:-1], 32)


@torch.no_grad()
def test_position_embedding_as_timm_resizes_it():
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 10}
    theirs = trained(VisionTransformer(img_size=32, mlp_ratio=2, **arguments)).eval()
    ours = tiny("deit_small", img_size=32, depth=1).eval()
    ours.load_state_dict(theirs.state_dict())
    for model in (ours, theirs):
        model.set_input_size((64, 48))
    x = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_no_grid_has_so_many_tokens():
    weights = fixed("container_pam", (24, 56)).state_dict()  # 21 tokens
    expected = (
        "has 21 tokens on its grid, expected 32 as the model, a square number, "
        "or a grid with sides in the ratio 2:1 of the model's"
    )
    for name in ("pos_embed", "blocks.0.aggregation.affinity"):
        with pytest.raises(RuntimeError, match=re.escape(f"state_dict: {name} {expected}")):
            checkpoint_filter_fn({name: weights[name]}, fixed("container_pam", (64, 32)))
    # A class token more.
    weights = fixed("deit_small", 32).state_dict()
    with pytest.raises(RuntimeError, match="pos_embed has 17 tokens on its grid, expected 16 as the model"):
        checkpoint_filter_fn(weights, tiny("deit_small", class_token=False, global_pool="avg"))


@pytest.mark.parametrize("name", ["container_pam", "mixer"])
def test_two_grids_are_not_guessed(name, tmp_path):
    """144 tokens are 12×12 or, in the ratio of 16:9, 9×16."""
    model = fixed(name, (72, 128))
    torch.save(model.state_dict(), path := tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match=r"144 tokens on its grid, which may be \(9, 16\) or \(12, 12\): load it"):
        load_checkpoint(fixed(name, (144, 256)), path)
    again = fixed(name, (72, 128), seed=2)  # what the message says
    load_checkpoint(again, path)
    again.set_input_size((144, 256))
    model.set_input_size((144, 256))
    same(again.state_dict(), model.state_dict())


def test_distilled_weights_are_refused_with_the_reason(tmp_path):
    theirs = VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, mlp_ratio=2)
    torch.save(theirs.state_dict(), path := tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match=r"weights with other prefix tokens, such as dist_token .* do not fit"):
        load_checkpoint(tiny("deit_small"), path)


def test_other_hidden_tokens_are_no_other_grid(tmp_path):
    """As many hidden tokens as tokens: 16 and 16, then 25 hidden ones in the file."""
    torch.save(tiny("mixer", hidden_tokens=25).state_dict(), path := tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match=r"size mismatch for blocks\.0\.aggregation\.token_mlp\.w1"):
        load_checkpoint(tiny("mixer", hidden_tokens=16), path)


def test_what_differs_otherwise_is_left_to_be_refused(tmp_path):
    torch.save(fixed("mh_mixer", 32).state_dict(), path := tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match=r"size mismatch for blocks\.0\.aggregation\.token_mlp\.w1"):
        load_checkpoint(tiny("mixer", img_size=64), path)


def test_only_what_belongs_to_the_grid_is_new():
    """Other parameters stay the same objects, and what needs no gradient still needs none."""
    model = fixed("container_pam", 32)
    model.pos_embed.requires_grad_(False)
    model.blocks[1].aggregation.affinity.requires_grad_(False)
    before = dict(model.named_parameters())
    model.set_input_size(64)
    for name, parameter in model.named_parameters():
        assert (parameter is before[name]) == (not name.endswith(("pos_embed", "affinity"))), name
        assert parameter.requires_grad == before[name].requires_grad
    assert model.img_size == (64, 64) and model.grid_size == (8, 8)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)  # of the weights, not of the network


@torch.no_grad()
@pytest.mark.parametrize("name", FIXED)
def test_features_and_fusing_after(name):
    model, x = fixed(name, 32), torch.randn(1, 3, 64, 32, dtype=torch.float64)
    model.set_input_size((64, 32))
    expected = model.forward_intermediates(x, intermediates_only=True)
    logits = model(x)
    model.fuse()
    torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-10)
    for a, b in zip(model.forward_intermediates(x, intermediates_only=True), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_refusals():
    with pytest.raises(RuntimeError, match=r"set_input_size: the network is fused, .* call it before fuse\(\)"):
        fixed("container_pam", 32).fuse().set_input_size(64)
    with pytest.raises(ValueError, match="img_size: expected at least one patch"):
        fixed("deit_small", 32).set_input_size((64, 4))
    pyramid = fixed("container", 32)
    with pytest.raises(ValueError, match="img_size: expected pixels for at least one token in each part, got 4"):
        pyramid.set_input_size(4)
    assert pyramid(torch.randn(1, 3, 32, 32, dtype=torch.float64)).shape == (1, 10)  # nothing was changed


def test_pyramids_without_dense_affinities_take_any_size():
    model = tiny("container_light")
    before = dict(model.named_parameters())
    model.set_input_size(96)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    model.fuse().set_input_size((64, 96))
    pruned = fixed("container", 32)
    pruned.prune_intermediate_layers([0])
    pruned.set_input_size(64)
    assert pruned.stages[0].blocks[0].aggregation.grid_size == (32, 32)
    assert pruned(torch.randn(1, 3, 64, 64, dtype=torch.float64)).shape == (1, 16, 32, 32)


def test_as_a_user_would():
    model = timm.create_model("deit_small", img_size=96, num_classes=10, depth=1)
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 10)
    model = timm.create_model("container_pam", features_only=True, depth=3, out_indices=[2])
    assert model(torch.randn(1, 3, 224, 224))[0].shape == (1, 384, 14, 14)
    layers = [layer for layer in model.modules() if isinstance(layer, ContextAggregation)]
    assert len(layers) == 3 and all(layer.affinity.shape == (6, 197, 197) for layer in layers)


@pytest.mark.parametrize("class_token", [True, False])
def test_dynamic_img_size_is_timms(class_token):
    """Images of other sizes than the network's: the position embedding is resized in the forward pass."""
    pool = "token" if class_token else "avg"
    arguments = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0, "global_pool": pool}
    ours = trained(IsotropicContainer(img_size=32, class_token=class_token, dynamic_img_size=True, **arguments)).eval()
    theirs = VisionTransformer(
        img_size=32, class_token=class_token, dynamic_img_size=True, fc_norm=False, **arguments
    ).eval()
    ours.load_state_dict(checkpoint_filter_fn(trained(theirs).state_dict(), ours))
    fixed_size = IsotropicContainer(img_size=32, class_token=class_token, **arguments).eval()
    fixed_size.load_state_dict(ours.state_dict())
    for size in ((32, 32), (16, 16), (20, 44), (64, 32)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), fixed_size(x))
    with pytest.raises(ValueError, match="expected 32×32 pixels"):
        fixed_size(torch.randn(2, 3, 16, 16))
    ours(torch.randn(1, 3, 16, 16)).sum().backward()
    assert ours.pos_embed.grad.abs().sum() > 0


def test_dynamic_img_size_is_refused_with_a_matrix_over_one_grid():
    with pytest.raises(ValueError, match="dynamic_img_size: expected False because static='dense'"):
        tiny("container_pam", img_size=32, dynamic_img_size=True)
