# SPDX-License-Identifier: MIT
"""Images of a user through a trained detector: `detect_images.py`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from timm.utils import reparameterize_model
from tqdm import tqdm

from tasks.detection.annotations import Objects
from tasks.detection.checkpoint import load_detector
from tasks.detection.data import collate
from tasks.detection.draw import draw_detection, sheet
from tasks.detection.evaluate import detect
from tasks.detection.metrics import as_results
from tasks.detection.transforms import EvaluationTransform, Sizes
from training.checkpoint import atomic_write
from training.compute import make_compute
from training.distributed import join_world
from training.errors import OptionError
from training.image_decoding import decode_image, is_image_name
from training.option_checks import check_compute, require_all
from training.options import option, positional
from training.shared_options import ComputeOptions

IMAGES_PER_SHEET = 24
CELL_SIDE = 480  # pixels; the longer side of an image on a sheet


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionOptions(ComputeOptions):
    """The options of `detect_images.py`."""

    checkpoint: str = positional("a checkpoint of detect.py", "input")
    images: tuple[str, ...] = positional("images, or folders of them", "input", nargs="+")

    short_side: int | None = option(None, "pixels that the short side gets (default: as trained)", "input")
    longest_side: int | None = option(None, "the most that the long side gets (default: as trained)", "input")
    threshold: float = option(0.5, "the least score that is shown and written", "output")
    columns: int = option(4, "images side by side on a sheet", "output")
    output_dir: str = option("detections", "folder of the sheets and the json; made if there is none", "output")


def predict(options: PredictionOptions) -> dict[str, Any]:
    """Detect in every image; write sheets of `IMAGES_PER_SHEET` and `detections.json`, and return the latter's content.

    Raises:
        OptionError: an option is impossible, or there are no images.
        CheckpointError: the checkpoint cannot be read or is none of `detect.py`.
        DataError: an image cannot be read.
    """
    require_all(options, ("short_side", "longest_side", "columns"), lambda value: value >= 1, "1 or more")
    require_all(options, ("threshold",), lambda value: 0 <= value <= 1, "from 0 to 1")
    check_compute(options.device, options.amp_dtype)
    if os.path.exists(options.output_dir) and not os.path.isdir(options.output_dir):
        raise OptionError(f"--output-dir {options.output_dir}: expected a folder, this is a file")
    paths = find_images(options.images)
    saved = load_detector(options.checkpoint)
    trained, names = saved.options, [category.name for category in saved.categories]
    compute = make_compute(join_world(options.device).device, options.amp_dtype, options.channels_last)
    # What is folded and fused computes the same, faster.
    model = reparameterize_model(saved.model).to(compute.device, memory_format=compute.memory_format)
    sizes = Sizes((options.short_side or trained.short_sides[-1],), options.longest_side or trained.longest_side)
    transform = EvaluationTransform(sizes)

    os.makedirs(options.output_dir, exist_ok=True)
    images, annotations, sheets, cells = [], [], [], []
    for number, path in enumerate(tqdm(paths, disable=None, unit=" images", leave=False), start=1):
        image = decode_image(path, path, upright=True)
        batch = collate([(transform(image, Objects.none()), 0)])
        (found,) = detect(model, batch, compute, saved.normalization, [(image.height, image.width)])
        found = {name: value[found["scores"] >= options.threshold] for name, value in found.items()}
        images.append({"id": number, "file_name": path, "width": image.width, "height": image.height})
        for result in as_results(found, number, saved.categories):
            _, _, width, height = result["bbox"]
            annotations.append({"id": len(annotations) + 1, **result, "area": width * height, "iscrowd": 0})
        scale = CELL_SIDE / max(image.size)
        cells.append(draw_detection(image, found, names, options.threshold, scale))
        if len(cells) == IMAGES_PER_SHEET or number == len(paths):
            sheets.append(os.path.join(options.output_dir, f"sheet{len(sheets) + 1 if sheets else ''}.png"))
            sheet(cells, options.columns).save(sheets[-1])
            cells.clear()

    categories = [{"id": category.id, "name": category.name} for category in saved.categories]
    content = {"images": images, "annotations": annotations, "categories": categories}
    output = os.path.join(options.output_dir, "detections.json")
    with atomic_write(output) as file:
        file.write(json.dumps(content).encode())
    print(f"{trained.detector} with {trained.model}: {len(annotations):,} objects in {len(images):,} images, "
          f"with a score of {options.threshold:g} or more")  # fmt: skip
    print(*(f"picture   {name}" for name in sheets), f"json      {output}", sep="\n")
    return content


def find_images(paths: Sequence[str]) -> list[str]:
    """`paths` with the images of a folder, and of those inside of it, in its place.

    Raises:
        OptionError: a path does not exist, or a folder has no images.
    """
    found = []
    for path in paths:
        if os.path.isfile(path):
            found.append(path)
            continue
        if not os.path.isdir(path):
            raise OptionError(f"IMAGES {path}: there is no such file or folder")
        inside = sorted(
            os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names if is_image_name(name)
        )
        if not inside:
            raise OptionError(f"IMAGES {path}: there are no images in this folder")
        found.extend(inside)
    return found
