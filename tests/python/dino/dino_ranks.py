"""Started by torchrun, or alone: runs of 8 images per step whose views are not random; records what a rank ended with.

Arguments: the folder for the runs, the image tree.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from trial_runs import PROGRAMS  # noqa: F401  makes the programs importable

import dino  # isort: skip
from tasks.dino.views import Views  # isort: skip
from training.distributed import launched_size, leave_world  # isort: skip

NETWORKS = {
    "deit": ["deit_small", "--model-kwargs", "embed_dim=16", "depth=1", "num_heads=2", "patch_size=8"],
    "container": [
        "container_tiny", "--model-kwargs", "embed_dims=(8, 16)", "depths=(1, 1)", "strides=(4, 2)",
        "num_heads=1", "mlp_ratios=2",
    ],
}  # fmt: skip


def fixed_views(self, image):
    """Crops of the middle, smaller ones for local views."""
    views = []
    for size, part in ((32, 0), (32, 4), (16, 8), (16, 12)):
        crop = image.resize((48, 48)).crop((part, part, 48 - part, 48 - part)).resize((size, size))
        views.append(torch.tensor(list(crop.tobytes()), dtype=torch.uint8).reshape(size, size, 3).permute(2, 0, 1))
    return views


def main(folder: Path, images: Path) -> None:
    Views.__call__ = fixed_views
    for name, model in NETWORKS.items():
        output = folder / name
        run = dino.main([
            "--data-path", str(images), "--output-dir", str(output), "--model", *model, "--global-crops-size", "32",
            "--local-crops-size", "16", "--local-crops", "2", "--out-dim", "32", "--head-hidden-dim", "16",
            "--head-bottleneck-dim", "8", "--epochs", "3", "--warmup-epochs", "1", "--freeze-last-layer", "1",
            "--batch-size", str(8 // launched_size()), "--opt", "sgd", "--lr", "0.05", "--unscale-lr", "--knn-k", "5",
            "20", "--eval-every", "1", "--num-workers", "0", "--device", "cpu", "--drop-path", "0",
        ])  # fmt: skip
        content = {"state": run.model.state_dict(), "history": run.history, "controls": run.task.controls}
        torch.save(content, output / f"rank{run.world.rank}.pth")
    leave_world()


main(*map(Path, sys.argv[1:]))
