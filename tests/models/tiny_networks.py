"""Every registered network, small enough for a test."""

import timm
import torch

PYRAMIDS = ("container", "container_light", "h_deit", "container_depthwise")
ISOTROPIC = ("deit_small", "container_pam", "mixer", "mh_mixer")  # deit_tiny is deit_small, made small
_PYRAMID = {
    "embed_dims": (16, 24, 32, 48),
    "depths": (1, 1, 2, 1),
    "num_heads": (1, 2, 2, 3),
    "mlp_ratios": (2, 2, 2, 2),
}
_ISOTROPIC = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 2}
_MIXER = {"hidden_tokens": 6}


def tiny(name, **arguments):
    """A network for 32×32 images (isotropic) or any (pyramids), with 10 classes."""
    own = _PYRAMID if name in PYRAMIDS else _ISOTROPIC | (_MIXER if "mixer" in name else {})
    if name == "mixer":
        own = own | {"num_heads": 1}
    return timm.create_model(name, **{**own, "num_classes": 10, **arguments})


@torch.no_grad()
def trained(model, seed=1):
    """`model` with no parameter at 0 or 1, as biases and norms are in a fresh one: none can be forgotten unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.2 * noise if is_norm else 0.2 * noise if parameter.ndim < 2 else 0.1 * noise)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model
