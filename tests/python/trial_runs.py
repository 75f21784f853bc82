"""Tiny image trees, runs of seconds, and a way to import the programs of `python/`."""

import contextlib
import signal
import sys
from pathlib import Path

import numpy
from PIL import Image

PROGRAMS = Path(__file__).parents[2] / "python"
if str(PROGRAMS) not in sys.path:
    sys.path.insert(0, str(PROGRAMS))

CLASSES = {"blue": 2, "green": 1, "red": 0}


def write_tree(root: Path, train: int = 8, val: int = 5) -> Path:
    """`root/{train,val}/{blue,green,red}/*.png`: noise on a colored ground, 20×24 pixels."""
    rng = numpy.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, channel in CLASSES.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (20, 24, 3), dtype=numpy.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return root


def small_run(images: Path, output: Path, *more: str) -> list[str]:
    """Arguments of a run of 3 × 6 steps in which every part of DeiT's recipe is on."""
    return [
        "--data-path", str(images), "--output-dir", str(output), "--model", "test_resnet", "--input-size", "32",
        "--epochs", "3", "--warmup-epochs", "1", "--batch-size", "4", "--lr", "1e-3", "--unscale-lr",
        "--model-ema-decay", "0.9", "--num-workers", "0", "--device", "cpu", *more,
    ]  # fmt: skip


@contextlib.contextmanager
def signalled_rank_one(batches: int):
    """Within it rank 1 alone gets SIGTERM after some batches, of training and evaluation; rank 0 has to hear of it."""
    from training.interrupt import Interrupted, StopGuard

    check, calls = StopGuard.check, iter(range(batches, -1, -1))

    def counting_check(self, batch=None):
        if next(calls, 0) == 0 and self.world.rank == 1:
            self.signum = signal.SIGTERM
        check(self, batch)

    StopGuard.check = counting_check
    try:
        with contextlib.suppress(Interrupted):
            yield
    finally:
        StopGuard.check = check
