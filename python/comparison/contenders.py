# SPDX-License-Identifier: MIT
"""The networks that are compared: settings of one block, with equally many parameters, for 32×32 images."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Contender:
    """A registered model and the arguments that bring it to the common size."""

    name: str
    layout: str
    affinity: str
    equalized: str
    model: str
    model_kwargs: dict[str, object]


def _pyramid(name: str, affinity: str, model: str, mlp_ratios: tuple[float, ...], why: str) -> Contender:
    """Four stages, the dimensions of `container_tiny`; the MLPs get what an affinity does not need."""
    arguments = dict(
        embed_dims=(32, 64, 128, 160), depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 5), strides=(2, 2, 2, 2),
        mlp_ratios=mlp_ratios,
    )  # fmt: skip
    shown = " ".join(f"{ratio:g}" for ratio in (mlp_ratios if len(set(mlp_ratios)) > 1 else mlp_ratios[:1]))
    return Contender(name, "pyramid", affinity, f"MLP ratio {shown}{why}", model, arguments)


def _column(name: str, affinity: str, model: str, depth: int, mlp_ratio: float, **arguments) -> Contender:
    """One resolution: patches of 4×4 pixels, 64 tokens of 128 channels."""
    arguments = dict(patch_size=4, embed_dim=128, depth=depth, mlp_ratio=mlp_ratio, **arguments)
    return Contender(name, "column", affinity, f"{depth} layers, MLP ratio {mlp_ratio:g}", model, arguments)


_ALL = (
    _pyramid("mix", "dynamic + local", "container", (4, 4, 4, 4), ""),
    _pyramid("dynamic", "dynamic", "h_deit", (4.125,) * 4, ", for the missing filters"),
    _pyramid("static", "local", "container_depthwise", (5, 5, 5, 5), ", for the missing queries and keys"),
    _pyramid("light", "local; stage 4 dynamic + local", "container_light", (5, 5, 5, 4), ", as static and mix"),
    _column("deit", "dynamic", "deit_tiny", 5, 3.4375, num_heads=4),
    _column("pam", "dynamic + dense", "container_pam", 5, 2.90625, num_heads=4),
    _column("mixer", "dense, one head", "mixer", 6, 4.3125, hidden_tokens=64),
    _column("mh-mixer", "dense, 4 heads", "mh_mixer", 6, 3.5625, hidden_tokens=64, num_heads=4),
)

CONTENDERS = {contender.name: contender for contender in _ALL}
CORE = ("mix", "dynamic", "static")
"""The paper's question in one layout: the mix and each of its parts. These run first and get most seeds."""
