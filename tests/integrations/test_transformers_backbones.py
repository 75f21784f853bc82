"""Detectors of transformers with one of our networks in them: saved and loaded, nothing is lost."""

import pytest
import torch

import container_kernels  # noqa: F401  registers the networks

transformers = pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[integrations]'")

from container_kernels.integrations.transformers import register_backbones  # noqa: E402

SMALL = {
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 6,
    "num_labels": 3,
}
DETECTORS = {"Detr": [3], "ConditionalDetr": [3], "DeformableDetr": [1, 2, 3]}


@pytest.fixture
def conversions():
    """What transformers renames, as it was before the test."""
    mapping = pytest.importorskip("transformers.conversion_mapping")
    before = mapping.get_checkpoint_conversion_mapping("DetrModel")
    yield mapping
    if before is not None:
        mapping.register_checkpoint_conversion_mapping("DetrModel", before, overwrite=True)


def build(name):
    config = getattr(transformers, f"{name}Config")(
        backbone_config=transformers.TimmBackboneConfig(backbone="container_tiny", out_indices=DETECTORS[name]), **SMALL
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForObjectDetection")(config).eval()
    with torch.no_grad():  # nothing that a new model would begin with
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(0.1 * torch.rand_like(tensor))
    return model


@pytest.mark.parametrize("name", DETECTORS)
def test_from_pretrained_gives_what_was_saved(name, tmp_path, conversions):
    register_backbones()
    model = build(name)
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    saved, found = model.state_dict(), loaded.eval().state_dict()
    assert saved.keys() == found.keys() and any(".aggregation.out_proj." in key for key in saved)
    for key, tensor in saved.items():
        assert torch.equal(tensor, found[key]), key
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():  # not bit for bit: weights that lie elsewhere in memory are summed in another order
        torch.testing.assert_close(loaded(image).logits, model(image).logits)


def test_register_backbones_twice_is_once(conversions):
    register_backbones()
    first = conversions.get_checkpoint_conversion_mapping("DetrModel")
    register_backbones()
    again = conversions.get_checkpoint_conversion_mapping("DetrModel")
    assert [rename.source_patterns for rename in again] == [rename.source_patterns for rename in first]
    patterns = [pattern for rename in again for pattern in rename.source_patterns]
    assert "out_proj" not in patterns and sum("out_proj" in pattern for pattern in patterns) == 2
