# SPDX-License-Identifier: MIT
"""Student, teacher and centre: the module that is trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Branch(nn.Module):
    """A backbone, images (N, 3, H, W) to features (N, C), with a head on it.

    forward: views, a list of (B, 3, H, W), to logits (views · B, out_dim), view by view. Views of one size after
    another make one forward of the backbone, and all of them one of the head.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        groups = [list(group) for _, group in itertools.groupby(views, key=lambda view: view.shape[-2:])]
        return self.head(torch.cat([self.backbone(torch.cat(group)) for group in groups]))


class Distillation(nn.Module):
    """A student that learns what a teacher says, the average of its past.

    forward: views, a list of (B, 3, H, W), the global ones first, to logits of the student for all of them (views, B,
    out_dim) and of the teacher for the global ones (global views, B, out_dim), without gradient.

    Both are in training mode while training: the teacher's batch norms take their statistics from global views alone.

    Args:
        student, teacher: branches of one structure; the teacher becomes a copy of the student.
        global_views: how many of the views the teacher sees.
        out_dim: of the heads.
    """

    centre: Tensor

    def __init__(self, student: Branch, teacher: Branch, global_views: int, out_dim: int):
        super().__init__()
        self.student, self.teacher, self.global_views = student, teacher.requires_grad_(False), global_views
        teacher.load_state_dict(student.state_dict())
        self.register_buffer("centre", torch.zeros(out_dim))

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            taught = self.teacher(views[: self.global_views])
        learned = self.student(views)
        return learned.unflatten(0, (len(views), -1)), taught.unflatten(0, (self.global_views, -1))

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher = momentum · teacher + (1 − momentum) · student: parameters alone, buffers are its own."""
        for average, parameter in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            average.lerp_(parameter.to(average.dtype), 1 - momentum)

    @torch.no_grad()
    def update_centre(self, mean: Tensor, momentum: float) -> None:
        """centre = momentum · centre + (1 − momentum) · mean of the teacher's logits (out_dim,) over a step."""
        self.centre.mul_(momentum).add_(mean.to(self.centre.dtype), alpha=1 - momentum)
