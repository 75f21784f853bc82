"""The released network's weights for the golden file: filled from its parameter names, nothing is shipped."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "container_light_official.npz"))


def released_state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of container_v1_light under its released name, in its released shape."""
    names = json.loads((GOLDEN / "container_light_official_names.json").read_text())
    return {name: _fill(name, shape, seed) for name, shape in names.items()}


def golden_input() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([7, 0]).standard_normal((2, 3, 224, 224)).astype(np.float32))


def _fill(name: str, shape: list[int], seed: int) -> torch.Tensor:
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(0)
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    noise = torch.from_numpy(np.asarray(rng.standard_normal(shape).astype(np.float32)))
    if leaf == "running_var":
        return 1 + 0.2 * noise.abs()
    if leaf == "running_mean":
        return 0.1 * noise
    if leaf == "sa_weight":
        return 0.5 * noise
    if noise.ndim >= 2:
        return noise / float(np.sqrt(np.prod(shape[1:])))
    return 1 + 0.1 * noise if leaf == "weight" else 0.05 * noise
