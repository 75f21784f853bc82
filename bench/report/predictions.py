# SPDX-License-Identifier: MIT
"""Microseconds predicted on one H100 (3.0 TB/s, 800 TFLOP/s, 132 SMs), by the name of the problem in the table.

Predictions are made before anything is measured and are not adjusted to it: measured / predicted says where an
explanation is missing. Forward + backward is the sum of the predictions of both. Edit a number here when a change is
predicted to move it, and say why in bench/NOTES.md.
"""

DEVICE = "NVIDIA H100 80GB HBM3"

_COUNTED = "NOTES.md, CUDA mix: gains by instruction count; 75 % of the issue slots"
_SCALED = "NOTES.md, CUDA depthwise, without the fixed 2 (7) µs in proportion to the batch, then with them"
_DEPTHWISE = "NOTES.md, CUDA depthwise"
_MLP = "NOTES.md, Triton MLP and projection"
_SCORES = "NOTES.md, Triton mix: the 28×28 rows in proportion to the scores"
_WINDOWS = "NOTES.md, CUDA depthwise, with the instructions of this window"
_PASSES = "the forward's time per tensor that moves, + 5"
_NETWORKS = "NOTES.md, whole networks: floors of the operators, of which ops reach 45 to 62 %"
_SAMPLED = "NOTES.md, CUDA deformable_attention: per image 130 µs of cache reads forward, 150 + 280 backward"
_COLUMNS = "floors, of which ops reach 50 to 60 %"

# Problem: (µs, where the number is from).
PREDICTIONS: dict[str, tuple[float, str]] = {
    "mix forward, 128×7×7, 512 channels, 16 heads": (16.2, _COUNTED),
    "mix forward, 128×14×14, 320 channels, 10 heads": (44, _COUNTED),
    "mix forward, 64×28×28, 128 channels, 4 heads": (113, "NOTES.md, Triton mix: instructions at 75 % of issue slots"),
    "mix forward + backward, 128×7×7, 512 channels, 16 heads": (55, _COUNTED),
    "mix forward + backward, 128×14×14, 320 channels, 10 heads": (169, _COUNTED),
    "mix forward + backward, 64×28×28, 128 channels, 4 heads": (386, "NOTES.md, Triton mix: 113 + 273"),
    "mix forward, 32×56×56, 64 channels, 2 heads": (440, _SCORES),
    "mix forward, 8×25×42, 512 channels, 16 heads": (102, _SCORES),
    "mix forward, 4×50×84, 320 channels, 10 heads": (500, _SCORES),
    "mix forward + backward, 32×56×56, 64 channels, 2 heads": (1530, _SCORES),
    "mix forward + backward, 8×25×42, 512 channels, 16 heads": (348, _SCORES),
    "mix forward + backward, 4×50×84, 320 channels, 10 heads": (1720, _SCORES),
    "depthwise 3×3 forward, 128×7×7, 512 channels": (6.8, _WINDOWS),
    "depthwise 3×3 forward, 128×14×14, 320 channels": (13.9, _WINDOWS),
    "depthwise 3×3 forward, 128×28×28, 128 channels": (21, _WINDOWS),
    "depthwise 3×3 forward, 128×56×56, 64 channels": (40, _WINDOWS),
    "depthwise 3×3 forward + backward, 128×7×7, 512 channels": (21.4, _WINDOWS),
    "depthwise 3×3 forward + backward, 128×14×14, 320 channels": (42.7, _WINDOWS),
    "depthwise 3×3 forward + backward, 128×28×28, 128 channels": (64, _WINDOWS),
    "depthwise 3×3 forward + backward, 128×56×56, 64 channels": (121, _WINDOWS),
    "depthwise 7×7 forward, 128×7×7, 512 channels": (9.5, _WINDOWS),
    "depthwise 7×7 forward, 128×14×14, 320 channels": (23.2, _WINDOWS),
    "depthwise 7×7 forward, 128×28×28, 128 channels": (33, _WINDOWS),
    "depthwise 7×7 forward, 128×56×56, 64 channels": (67, _WINDOWS),
    "depthwise 7×7 forward + backward, 128×7×7, 512 channels": (31.6, _WINDOWS),
    "depthwise 7×7 forward + backward, 128×14×14, 320 channels": (77, _WINDOWS),
    "depthwise 7×7 forward + backward, 128×28×28, 128 channels": (107, _WINDOWS),
    "depthwise 7×7 forward + backward, 128×56×56, 64 channels": (212, _WINDOWS),
    "depthwise 5×5 forward, 128×7×7, 512 channels": (6.8, _DEPTHWISE),
    "depthwise 5×5 forward, 128×14×14, 320 channels": (14.3, _DEPTHWISE),
    "depthwise 5×5 forward, 128×28×28, 128 channels": (21, _SCALED),
    "depthwise 5×5 forward, 128×56×56, 64 channels": (40, _SCALED),
    "depthwise 5×5 forward + backward, 128×7×7, 512 channels": (24.6, _DEPTHWISE),
    "depthwise 5×5 forward + backward, 128×14×14, 320 channels": (50.9, _DEPTHWISE),
    "depthwise 5×5 forward + backward, 128×28×28, 128 channels": (73, _SCALED),
    "depthwise 5×5 forward + backward, 128×56×56, 64 channels": (139, _SCALED),
    "fused_mlp forward, 128×3136, 64 channels, ratio 8": (90, _MLP),
    "fused_mlp forward, 128×784, 128 channels, ratio 8": (95, _MLP),
    "fused_mlp forward, 128×196, 320 channels, ratio 4": (109, _MLP),
    "fused_mlp forward, 128×49, 512 channels, ratio 4": (66, _MLP),
    "fused_mlp forward + backward, 128×3136, 64 channels, ratio 8": (398, _MLP),
    "fused_mlp forward + backward, 128×784, 128 channels, ratio 8": (403, _MLP),
    "fused_mlp forward + backward, 128×196, 320 channels, ratio 4": (338, _MLP),
    "fused_mlp forward + backward, 128×49, 512 channels, ratio 4": (205, _MLP),
    "projection forward, 128×3136, 64 to 64 channels and residual": (63, _MLP),
    "projection forward, 128×784, 128 to 128 channels and residual": (34, _MLP),
    "projection forward, 128×196, 320 to 320 channels and residual": (24, _MLP),
    "projection forward, 128×49, 512 to 512 channels and residual": (15, _MLP),
    "projection forward, 128×49, 512 to 1536 channels": (26, _MLP),
    "projection forward + backward, 128×3136, 64 to 64 channels and residual": (152, _PASSES),
    "projection forward + backward, 128×784, 128 to 128 channels and residual": (84, _PASSES),
    "projection forward + backward, 128×196, 320 to 320 channels and residual": (61, _PASSES),
    "projection forward + backward, 128×49, 512 to 512 channels and residual": (40, _PASSES),
    "projection forward + backward, 128×49, 512 to 1536 channels": (83, _PASSES),
    "deformable_attention encoder forward, 2×800×1333, 22223 queries": (260, _SAMPLED),
    "deformable_attention encoder forward + backward, 2×800×1333, 22223 queries": (1120, _SAMPLED),
    "deformable_attention decoder forward, 2×800×1333, 300 queries": (10, _SAMPLED),
    "deformable_attention decoder forward + backward, 2×800×1333, 300 queries": (45, _SAMPLED),
    "container_light inference, batch 128, 224×224": (4400, _NETWORKS),
    "container_light training step, batch 128, 224×224": (15400, _NETWORKS),
    "container inference, batch 64, 224×224": (4000, _NETWORKS),
    "container training step, batch 64, 224×224": (16700, _NETWORKS),
    "deit_small inference, batch 128, 224×224": (3300, _COLUMNS),
    "deit_small training step, batch 128, 224×224": (11400, _COLUMNS),
    "mixer inference, batch 128, 224×224": (6700, _COLUMNS),
    "mixer training step, batch 128, 224×224": (26600, _COLUMNS),
}


def predicted_us(problem: str) -> float | None:
    """Microseconds that were predicted; None where there is no prediction."""
    return PREDICTIONS[problem][0] if problem in PREDICTIONS else None
