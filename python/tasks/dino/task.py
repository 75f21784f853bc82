# SPDX-License-Identifier: MIT
"""Self-distillation without labels, as the engine sees it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import torch
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from labelled_images.sources import Source
from tasks.dino.branches import Branch, Distillation
from tasks.dino.controls import Accuracies, measure_controls
from tasks.dino.curves import draw_curves
from tasks.dino.data import views_loader
from tasks.dino.diagnosis import Targets, advice, deviation, measure_targets
from tasks.dino.features import extract, make_images
from tasks.dino.loss import distillation_loss, entropy, targets_of
from tasks.dino.neighbours import accuracies, check_bank, draw_few_of
from tasks.dino.options import DinoOptions
from tasks.dino.schedules import StepValues, values_at
from tasks.dino.views import Views
from training.batches import TrainingBatches
from training.compute import Compute, ImageFormat
from training.distributed import World
from training.interrupt import StopGuard
from training.options import wrap_command_line
from training.progress import Progress
from training.task import Losses, Task

BEST_K = 20  # usually the best, and what papers report


class Dino(Task):
    """A network that learns features from images alone.

    `untrained` builds the backbone as it was before training, one of the controls.

    Raises:
        DataError: there are fewer images than a batch or --knn-k needs.
    """

    name = "dino"
    part_names = ("target_entropy", "mean_target_entropy")

    def __init__(
        self,
        options: DinoOptions,
        model: Distillation,
        train: Source,
        val: Source,
        image_format: ImageFormat,
        compute: Compute,
        world: World,
        untrained: Callable[[], nn.Module],
    ):
        self.options, self.model, self.image_format, self.compute = options, model, image_format, compute
        self.world, self.untrained = world, untrained
        self.training_images = len(train.labels)
        self.classes = len(train.classes)
        self.data_name = "handwritten digits"
        if options.data_path:
            self.data_name = os.path.basename(os.path.abspath(options.data_path))
        ks = [f"knn{k}" for k in options.knn_k]
        self.metric_names = (
            *ks, "few", *(f"student_{name}" for name in (*ks, "few")), *self.part_names, "deviation",
        )  # fmt: skip
        self.score_name = f"knn{BEST_K if BEST_K in options.knn_k else options.knn_k[0]}"
        self.batches = TrainingBatches(len(train.labels), train.name, options, world)
        self.loader = views_loader(train, Views(options), self.batches, options.num_workers, world)
        loading = (compute, world, options.batch_size, options.num_workers, options.limit_batches)
        self.bank, self.queries = (make_images(source, image_format, *loading) for source in (train, val))
        check_bank(self.bank.batches.images, options.knn_k)
        self.controls: dict[str, Accuracies] = {}
        self.values: StepValues | None = None  # of the step
        self._taught = torch.zeros(options.out_dim + 1, dtype=torch.float64, device=compute.device)

    def parameter_groups(self) -> list[dict]:
        """See `Task.parameter_groups`: the student's, biases and norms without weight decay."""
        parameters = [p for p in self.model.student.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def start_update(self, optimizer: torch.optim.Optimizer, update: int, updates: int) -> None:
        """See `Task.start_update`."""
        self.values = values_at(self.options, update, updates)
        decaying, _ = optimizer.param_groups
        decaying["weight_decay"] = self.values.weight_decay
        self._taught.zero_()

    def step(self, network: nn.Module, batch: list[Tensor]) -> Losses:
        """See `Task.step`; a batch is a list of views, uint8 (B, 3, size, size)."""
        views = [self.compute.normalize(view, self.image_format) for view in batch]
        with self.compute.autocast():
            learned, taught = network(views)
        taught = taught.float()
        self._taught[:-1] += taught.sum(dim=(0, 1))
        self._taught[-1] += taught.shape[0] * taught.shape[1]
        targets = targets_of(taught, self.model.centre, self.values.teacher_temperature)
        parts = {
            "target_entropy": entropy(targets).mean(),
            "mean_target_entropy": entropy(targets.mean(dim=(0, 1))),
        }
        return Losses(distillation_loss(learned, targets, self.options.student_temp), parts)

    def adjust_gradients(self, clip_grad: float | None) -> None:
        """See `Task.adjust_gradients`; at first the prototypes stay as they are."""
        student = self.model.student
        if clip_grad is not None and self.options.clip_mode == "global":
            dispatch_clip_grad(student.parameters(), clip_grad)
        elif clip_grad is not None:
            for parameter in student.parameters():
                clip_grad_norm_(parameter, clip_grad)
        if self.values.last_layer_is_frozen:
            for parameter in student.head.last_layer():
                parameter.grad = None  # not zero: nor decay nor momentum may move it

    def finish_update(self) -> None:
        """See `Task.finish_update`."""
        self.model.update_teacher(self.values.momentum)
        total = self.world.add_up(self._taught)
        self.model.update_centre(total[:-1] / total[-1], self.options.center_momentum)

    def evaluate(self, network: nn.Module, guard: StopGuard, progress: Progress) -> dict[str, float]:
        """See `Task.evaluate`: kNN of teacher and student in evaluation mode, and the state of the targets."""
        self.model.eval()
        few = draw_few_of(self.bank)
        judge = functools.partial(
            accuracies, ks=self.options.knn_k, few=few, classes=self.classes, temperature=self.options.knn_temperature
        )
        if self.options.controls and not self.controls:
            self.controls = measure_controls(self.untrained, self.queries, self.bank, judge, guard, progress)
        found: dict[str, float] = {}
        for prefix, branch in (("", self.model.teacher), ("student_", self.model.student)):
            queries = extract(branch.backbone, self.queries, guard, progress)
            bank = extract(branch.backbone, self.bank, guard, progress)
            found |= {prefix + name: value for name, value in judge(queries, bank).items()}
            if branch is self.model.teacher:
                found["deviation"] = deviation(queries)
        targets = self._targets(self.model.teacher, guard, progress)
        self.model.train()
        return found | {"target_entropy": targets.entropy, "mean_target_entropy": targets.mean_entropy}

    def _targets(self, teacher: Branch, guard: StopGuard, progress: Progress) -> Targets:
        temperature = values_at(self.options, self.options.epochs - 1, self.options.epochs).teacher_temperature
        if self.values is not None:
            temperature = self.values.teacher_temperature
        logits = extract(lambda images: teacher([images]), self.queries, guard, progress, normalize=False).rows
        return measure_targets(targets_of(logits, self.model.centre, temperature), self.world)

    def score(self, metrics: Mapping[str, float]) -> float:
        """The teacher's kNN accuracy."""
        return metrics[self.score_name]

    def describe_data(self) -> str:
        """See `Task.describe_data`."""
        options = self.options
        views = f"2 × {options.global_crops_size}"
        if options.local_crops_number:
            views += f" + {options.local_crops_number} × {options.local_crops_size}"
        return (
            f"{self.data_name}: {self.training_images:,} training images in {views} views, "
            f"{self.queries.batches.images:,} to judge on"
        )

    def describe_recipe(self) -> list[str]:
        """The default recipe of the digits."""
        from tasks.dino.option_checks import DIGITS_RECIPE

        if self.options.data_path is not None:
            return []
        recipe = {name: value for name, value in DIGITS_RECIPE.items() if getattr(self.options, name) == value}
        recipe.pop("model_kwargs", None)
        return [
            "no --data-path was given: this learns scikit-learn's handwritten digits, with",
            *(f"          {part}" for part in wrap_command_line(recipe, 100)),
        ]

    def describe_epoch(self, row: Mapping[str, Any], best: float) -> str:
        """See `Task.describe_epoch`."""
        return (
            f"kNN {row[f'val_{self.score_name}']:.2f} % (student {row[f'val_student_{self.score_name}']:.2f} %)   "
            f"few labels {row['val_few']:.2f} %   best {best:.2f} %"
        )

    def warn_of(self, row: Mapping[str, Any]) -> str | None:
        """Of collapse."""
        targets = Targets(row["val_target_entropy"], row["val_mean_target_entropy"])
        return advice(targets, self.options.out_dim)

    def describe_result(self, row: Mapping[str, Any], best: float, epoch: int) -> str:
        """The teacher beside what it has to beat."""
        names = (self.score_name, "few")
        rows = {"teacher": {name: row[f"val_{name}"] for name in names}}
        rows["student"] = {name: row[f"val_student_{name}"] for name in names}
        rows |= self.controls
        k = self.score_name.removeprefix("knn")
        width = max(map(len, rows))
        targets = Targets(row["val_target_entropy"], row["val_mean_target_entropy"])
        lines = [f"best kNN {best:.2f} % in epoch {epoch}; at the end:"]
        lines += [f"  {'':{width}}   k = {k:3}   10 labels per class"]
        lines += [f"  {name:{width}}  {v[names[0]]:6.2f} %   {v['few']:6.2f} %" for name, v in rows.items()]
        lines += [
            f"targets: entropy {targets.entropy:.2f}, of their mean {targets.mean_entropy:.2f}, information "
            f"{targets.information:.2f} nats; deviation of the features {row['val_deviation']:.2f}"
        ]
        words = advice(targets, self.options.out_dim)
        return "\n".join([*lines, *([words] if words else [])])

    def draw_curves(self, file: BinaryIO, history: list[dict]) -> None:
        """See `Task.draw_curves`."""
        draw_curves(file, history, self.controls, self.score_name, f"{self.options.model} on {self.data_name}")

    def describe_weights(self) -> dict[str, Any]:
        """That the networks have no classes."""
        return {"classes": []}

    def state_dict(self) -> dict[str, Any]:
        """See `Task.state_dict`: what the controls have reached."""
        return {"controls": self.controls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Task.load_state_dict`."""
        self.controls = dict(state["controls"])
