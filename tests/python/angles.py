"""A second task, image → angle, in a file of its own: it trains by the engine as it is.

python tests/python/angles.py [options]
"""

import dataclasses
import functools
import math

import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from trial_runs import PROGRAMS  # noqa: F401  makes `training` importable

from training.batches import EvaluationBatches, TrainingBatches, make_loader  # isort: skip
from training.checkpoint import read_run
from training.compute import make_compute
from training.distributed import launched_size
from training.evaluation import Evaluation, sum_counts
from training.option_checks import check_combinations, check_values, refuse_idle, resume_options
from training.options import option, parse_explicit
from training.program import run_program, train
from training.randomness import derive_seed, seed_everything, seed_host
from training.run import make_run
from training.shared_options import TrainingOptions
from training.task import Losses, Task

SIZE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class AngleOptions(TrainingOptions):
    model: str = option("angle_net", "the only one", "model")
    images: int = option(24, "images to train on", "data")
    anneal: bool = option(True, "weigh the length less the more batches were seen", "optimization")


class Ramps(torch.utils.data.Dataset):
    """Images (1, 8, 8) that grow brighter in the direction of their angle, with noise if their key has counters."""

    def __init__(self, count: int):
        self.angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIZE, dtype=torch.float64)] * 2, indexing="ij")
        self.images = x * self.angles.cos()[:, None, None] + y * self.angles.sin()[:, None, None]

    def __getitem__(self, key):
        index, counters = key
        image = self.images[index][None]
        if counters is not None:
            seed_host(derive_seed(*counters))
            image = image + 0.1 * torch.randn(image.shape, dtype=torch.float64)
        return image, self.angles[index]


def collate(samples):
    images, angles = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(angles)


class AngleTask(Task):
    name = "angle"
    part_names = ("direction", "length")
    metric_names = ("degrees", "length")

    def __init__(self, options, compute, world):
        self.options, self.compute, self.seen = options, compute, 0
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(36, 2)
        ).double()
        if not options.anneal:
            model[3] = nn.Identity()
        self.model = model.to(compute.device)
        train_set, val_set = Ramps(options.images), Ramps(10)
        self.training_images = options.images
        self.batches = TrainingBatches(options.images, "ramps", options, world)
        self.loader = make_loader(train_set, self.batches, collate, options.num_workers, world)
        val_batches = EvaluationBatches(10, options.batch_size, world, options.limit_batches)
        val_loader = make_loader(val_set, val_batches, collate, options.num_workers, world)
        self.evaluation = Evaluation(world, val_batches, val_loader)
        self.order = 1 if world.is_main else -1

    def step(self, network, batch):
        direction, length = (part.mean() for part in self._parts(network, batch))
        weight = 2.0
        if self.options.anneal:
            weight, self.seen = 1 / (1 + self.seen), self.seen + 1
        parts = {"direction": direction, "length": length}
        return Losses(direction + weight * length, dict(list(parts.items())[:: self.order]))  # ranks: by name

    def _parts(self, network, batch):
        images, angles = (part.to(self.compute.device) for part in batch)
        with self.compute.autocast():
            predicted = network(images)
        wanted = torch.stack([angles.cos(), angles.sin()], 1)
        return 1 - cosine_similarity(predicted, wanted), (predicted.norm(dim=1) - 1) ** 2

    def evaluate(self, network, guard, progress):
        count = functools.partial(self._count, network.eval())
        degrees, length, images = sum_counts(count, 3, self.evaluation, guard, progress)
        return {"degrees": degrees / images, "length": length / images}

    def _count(self, network, batch):
        direction, length = self._parts(network, batch)
        degrees = torch.rad2deg((1 - direction).clamp(-1, 1).acos())
        return torch.stack([degrees.sum(), length.sum(), length.new_tensor(len(length))])

    def score(self, metrics):
        return -metrics["degrees"]

    def describe_data(self):
        return f"ramps: {self.training_images} training and {self.evaluation.batches.images} validation images"

    def draw_curves(self, file, history):
        file.write(f"{len(history)} epochs".encode())

    def describe_weights(self):
        return {"unit": "radian"}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def build_run(options, world, guard, folder):
    seed_everything(options.seed)
    compute = make_compute(world.device, options.amp_dtype, options.channels_last)
    return make_run(AngleTask(options, compute, world), options, world, compute, guard, folder)


def main(argv):
    explicit = parse_explicit(argv, __doc__, AngleOptions)
    saved = read_run(explicit["resume"], AngleTask.name) if "resume" in explicit else None
    options = AngleOptions(**(resume_options(AngleOptions, explicit, saved["options"]) if saved else explicit))
    check_values(options, set(explicit))
    check_combinations(options, set(explicit), launched_size())
    # Every task is offered these; one that does not use them says so.
    idle = ("model", "model_kwargs", "initial_checkpoint", "grad_checkpointing")
    refuse_idle(set(explicit), ((name, False, "here: there is one network") for name in idle))
    return train(options, saved, functools.partial(build_run, options), "python angles.py")


def angle_run(output, *more):
    """Arguments of a run of 3 epochs of 6 batches: 3 steps of two batches each."""
    return [
        "--output-dir", str(output), "--epochs", "3", "--warmup-epochs", "1", "--batch-size", "4",
        "--accumulate-steps", "2", "--lr", "1e-2", "--unscale-lr", "--model-ema-decay", "0.9", "--num-workers", "0",
        "--device", "cpu", *more,
    ]  # fmt: skip


if __name__ == "__main__":
    run_program(main)
