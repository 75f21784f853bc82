# SPDX-License-Identifier: MIT
"""Targets of speed and memory, by kind of problem and baseline."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """At least this many times faster, at least this part of the floor, at most this part of the peak memory."""

    ratio: float
    of_floor: float | None = None
    memory: float | None = None

    def met(self, ratio: float, of_floor: float, memory: float | None) -> bool:
        """Whether a measurement reaches all of it."""
        return (
            ratio >= self.ratio
            and (self.of_floor is None or of_floor >= self.of_floor)
            and (self.memory is None or (memory is not None and memory <= self.memory))
        )

    def __str__(self) -> str:
        parts = [f"≥ {self.ratio:.3g}×"]
        parts += [f"≥ {self.of_floor:.0%} of floor"] if self.of_floor else []
        parts += [f"≤ {self.memory:.3g}× memory"] if self.memory else []
        return ", ".join(parts)


_SMALL, _LARGE = "N ≤ 256", "N > 256"
_COMPILED = "torch.compile of eager"

# One H100, bfloat16.
GPU = {
    (f"mix forward, {_SMALL}", "eager"): Target(5, of_floor=0.7),
    (f"mix forward, {_SMALL}", _COMPILED): Target(2.5),
    (f"mix forward + backward, {_SMALL}", "eager"): Target(3),
    (f"mix forward + backward, {_SMALL}", _COMPILED): Target(2),
    # At most 1.05 and 1.10 times as long as attention alone.
    (f"mix forward, {_LARGE}", "fastest attention alone"): Target(1 / 1.05),
    (f"mix forward + backward, {_LARGE}", "fastest attention alone"): Target(1 / 1.10),
    ("depthwise forward", "eager"): Target(3, of_floor=0.8),
    ("depthwise forward + backward", "eager"): Target(3, of_floor=0.6),
    ("deformable_attention encoder forward", "eager"): Target(4),
    ("container_light inference", "eager"): Target(3),
    ("container_light inference", _COMPILED): Target(1.6),
    ("container_light training step", "eager"): Target(2.5, memory=0.5),
    ("container_light training step", _COMPILED): Target(1.5, memory=0.5),
    ("container inference", "eager"): Target(2.5),
    ("container inference", _COMPILED): Target(1.5),
    ("container training step", "eager"): Target(2.5, memory=0.5),
    ("container training step", _COMPILED): Target(1.5, memory=0.5),
}
# Two cores, float32.
CPU = {
    (f"mix forward, {_SMALL}", "eager"): Target(2),
    (f"mix forward, {_LARGE}", "eager"): Target(1.2),
    (f"mix forward + backward, {_SMALL}", "eager"): Target(1.5),
    (f"mix forward + backward, {_LARGE}", "eager"): Target(1.5),
    ("container_light inference", "eager"): Target(1.5),
    ("deformable_attention encoder forward", "eager"): Target(15),
    ("deformable_attention encoder forward + backward", "eager"): Target(10),
    ("deformable_attention decoder forward", "eager"): Target(4),
    ("deformable_attention decoder forward + backward", "eager"): Target(4),
}


def target(kind: str, baseline: str, device: str) -> Target | None:
    """The target for a kind of problem against a baseline; None where there is none."""
    return (GPU if device == "cuda" else CPU).get((kind, baseline))
