# SPDX-License-Identifier: MIT
"""Detectors as ONNX files: `export_detector.py`."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import warnings

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from tasks.detection.checkpoint import SavedDetector, load_detector
from tasks.detection.detectors import DETECTORS
from tasks.detection.evaluate import Normalization
from training.errors import DataError, OptionError
from training.option_checks import require_all
from training.options import option, positional

# How many objects there are depends on the image: torch.export, behind PyTorch's own exporter, stops at their
# suppression. Tracing has it as an operator.
TRACED = ("retinanet", "faster-rcnn", "mask-rcnn")
TRACED_OPSET = 17
AGREEMENT = 1e-3  # of scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `export_detector.py`."""

    checkpoint: str = positional("a checkpoint of detect.py", "input")

    image_size: tuple[int, ...] | None = option(
        None, "height and width (default: a square of the short side that it was validated at)", "input", nargs=2,
        metavar="PIXELS",
    )  # fmt: skip
    output: str | None = option(None, "the file (default: beside the checkpoint, .onnx)", "output")


class OneImage(nn.Module):
    """A detector of one uint8 image (3, H, W), which it normalizes."""

    def __init__(self, detector: nn.Module, normalization: Normalization, names: tuple[str, ...]):
        super().__init__()
        self.detector, self.normalization, self.names = detector, normalization, names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (found,) = self.detector(self.normalization.apply([image]))
        return tuple(found[name] for name in self.names)


def export(options: ExportOptions) -> str:
    """Write the file, compare it with the detector where onnxruntime is installed, and return its path.

    Raises:
        OptionError: a package is missing, or a size is impossible.
        CheckpointError: the checkpoint cannot be read or is none of `detect.py`.
        DataError: the file does not compute what the detector does.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"an export needs {' and '.join(missing)}: pip install onnx onnxscript onnxruntime")
    require_all(options, ("image_size",), lambda value: min(value) >= 1, "1 or more")
    output = options.output or os.path.splitext(options.checkpoint)[0] + ".onnx"
    if not os.path.isdir(folder := os.path.dirname(os.path.abspath(output))):
        raise OptionError(f"--output {output}: there is no folder {folder}")
    saved = load_detector(options.checkpoint)
    size = options.image_size or 2 * saved.options.short_sides[-1:]
    names = ("boxes", "labels", "scores", *(("masks",) if DETECTORS[saved.options.detector].gives_masks else ()))
    # What is folded and fused computes the same by plain operators.
    model = OneImage(reparameterize_model(saved.model), saved.normalization, names).eval()
    image = torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    _write(model, saved, image, output)
    trained = max(saved.options.short_sides)
    if not trained / 2 <= (short := min(size)) <= 2 * trained:
        print(f"note: trained on images with short sides of {trained} pixels; it may find little at {short}")
    print(f"{saved.options.detector} with {saved.options.model} for images of {size[0]}×{size[1]} (h × w): {output}")
    print(_compare(model, output))
    return output


def _write(model: OneImage, saved: SavedDetector, image: Tensor, output: str) -> None:
    import onnx

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of constants that the trace takes in: the size is one, on purpose
        common = dict(input_names=["image"], output_names=list(model.names))
        if saved.options.detector in TRACED:
            torch.onnx.export(model, (image,), output, dynamo=False, opset_version=TRACED_OPSET, **common)
        else:
            # onnxscript's optimizer takes a node away that deformable attention's sizes need.
            program = torch.onnx.export(model, (image,), dynamo=True, optimize=False, verbose=False, **common)
            program.save(output)
    content = onnx.load(output)
    onnx.helper.set_model_props(content, {"names": json.dumps([category.name for category in saved.categories])})
    onnx.save(content, output)


@torch.no_grad()
def _compare(model: OneImage, output: str) -> str:
    """A sentence about how near the file and the detector are on another image; raises DataError if they are not."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "not compared with the detector: onnxruntime is not installed"
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors: it warns of every constant it folds
    session = onnxruntime.InferenceSession(output, settings, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    image = torch.randint(256, given.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    actual = dict(zip(model.names, map(torch.from_numpy, session.run(None, {given.name: image.numpy()})), strict=True))
    expected = dict(zip(model.names, model(image), strict=True))
    if actual["scores"].shape != expected["scores"].shape:
        raise DataError(
            f"{output} finds {len(actual['scores'])} objects where the detector finds {len(expected['scores'])}"
        )
    difference = float((actual["scores"] - expected["scores"]).abs().max()) if len(expected["scores"]) else 0.0
    if not difference <= AGREEMENT:
        raise DataError(f"{output} gives scores that are {difference:.1e} off the detector's")
    return f"scores of {len(expected['scores'])} objects agree with the detector's to {difference:.0e}"
