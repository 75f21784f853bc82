# SPDX-License-Identifier: MIT
"""Microseconds predicted on one H100 (3.0 TB/s, 800 TFLOP/s, 132 SMs), by the name of the problem in the table.

Predictions are made before anything is measured and are not adjusted to it: measured / predicted says where an
explanation is missing. Forward + backward is the sum of both. Edit a number here when a change is predicted to move it,
and say why in bench/NOTES.md.
"""

DEVICE = "NVIDIA H100 80GB HBM3"

_COUNTED = "NOTES.md, CUDA mix: certain gains; 75 % of the issue slots"
_SCALED = "NOTES.md, CUDA depthwise, without the fixed 2 (7) µs in proportion to the batch"
_DEPTHWISE = "NOTES.md, CUDA depthwise"
_MLP = "NOTES.md, Triton MLP and projection"

# Problem: (µs, where the number is from).
PREDICTIONS: dict[str, tuple[float, str]] = {
    "mix forward, 128×7×7, 512 channels, 16 heads": (16.2, _COUNTED),
    "mix forward, 128×14×14, 320 channels, 10 heads": (44, _COUNTED),
    "mix forward, 64×28×28, 128 channels, 4 heads": (113, "NOTES.md, Triton mix: instructions at 75 % of issue slots"),
    "mix forward + backward, 128×7×7, 512 channels, 16 heads": (55, _COUNTED),
    "mix forward + backward, 128×14×14, 320 channels, 10 heads": (169, _COUNTED),
    "mix forward + backward, 64×28×28, 128 channels, 4 heads": (386, "NOTES.md, Triton mix: 113 + 273"),
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
}


def predicted_us(problem: str) -> float | None:
    """Microseconds that were predicted; None where nobody did."""
    return PREDICTIONS[problem][0] if problem in PREDICTIONS else None
