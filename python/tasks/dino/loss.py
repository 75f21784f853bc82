# SPDX-License-Identifier: MIT
"""The loss of DINO and its targets, in float32 whatever the logits are."""

from __future__ import annotations

from torch import Tensor


def targets_of(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """softmax((logits − centre) / temperature) over the last dimension, float32: what the teacher says."""
    return ((logits.float() - centre) / temperature).softmax(dim=-1)


def distillation_loss(learned: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """The cross entropy of targets and student, the mean over images and over pairs of two different views.

        mean over t, s ≠ t of  −Σₖ targets[t, k] · log softmax(learned[s] / temperature)[k]

    Args:
        learned: logits of the student (views, B, K), the teacher's views first.
        targets: of the teacher (global views, B, K).
        temperature: of the student.
    """
    log_p = (learned.float() / temperature).log_softmax(dim=-1)
    seen = len(targets)
    # Σ over s ≠ t = Σ over all s − (s = t): no product for each pair.
    other_views = log_p.sum(dim=0) - log_p[:seen]
    pairs = seen * (len(learned) - 1)
    return -(targets * other_views).sum(dim=(0, 2)).mean() / pairs


def entropy(p: Tensor) -> Tensor:
    """−Σ p log p over the last dimension, in nats; 0 where p is 0."""
    return -(p * p.clamp_min(1e-30).log()).sum(dim=-1)
