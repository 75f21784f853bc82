# SPDX-License-Identifier: MIT
"""Show what a trained network aggregates with: its affinities for an image, as a picture and as numbers.

python python/affinity.py RUN/best.pth IMAGE                              first, middle and last layer, two queries
python python/affinity.py RUN/best.pth IMAGE --layers 0 2 -1 --queries 0.5,0.5 8,20 --output affinity.png
python python/affinity.py FILE IMAGE --model container_light              released weights

A map shows with what the output at the query (x,y; whole numbers are pixels, decimal fractions parts of the image)
weighs the values of all tokens: by softmax attention (dynamic), by the learned filter or matrix (static), and by
alpha · dynamic + beta · static (mixed). The mean attention distance says how far that reaches, in every layer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from affinity_maps.figure import draw_affinities
from affinity_maps.files import check_files, load_unfused
from affinity_maps.measure import Layer, Measurement, measure
from affinity_maps.selection import DEFAULT_QUERIES, parse_head, parse_queries, refuse_signs
from tasks.classification.data import evaluation_transform
from tasks.classification.image_decoding import decode_image
from tasks.classification.option_checks import check_compute
from tasks.classification.saved_network import find_network
from training.checkpoint import atomic_write
from training.compute import make_compute
from training.distributed import join_world
from training.errors import OptionError
from training.options import option, parse_explicit, positional
from training.program import run_program

from container_kernels.analysis import TERMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffinityOptions:
    """The options of this program."""

    checkpoint: str = positional("the weights: of train.py, released, or of any network of this package", "input")
    image: str = positional("the image to look at", "input")
    model: str | None = option(None, "the model (default: the checkpoint's)", "input")
    model_kwargs: Mapping[str, object] | None = option(
        None, "arguments of the model (default: the checkpoint's)", "input", nargs="+", metavar="KEY=VALUE"
    )
    num_classes: int | None = option(None, "classes of the model (default: the checkpoint's, or the model's)", "input")
    use_ema: bool = option(False, "take the moving average of the weights that last.pth keeps", "input")
    input_size: int | None = option(None, "height and width of the image (default: as trained)", "input")
    crop_pct: float | None = option(None, "part of the resized image that is used (default: the model's)", "input")

    layers: tuple[str, ...] | None = option(
        None, "layers to map, by name or number (default: first, middle, last)", "maps", nargs="+", metavar="LAYER"
    )
    queries: tuple[str, ...] = option(DEFAULT_QUERIES, "where to look from", "maps", nargs="+", metavar="X,Y")
    head: str = option("mean", "number of the head to map, or mean", "maps")

    output: str = option("affinity.png", "the picture", "output")
    json: str | None = option(None, "the numbers (default: beside the picture, .json)", "output")
    device: str = option("auto", "cuda, cuda:1, cpu, or auto: a GPU if there is one", "output")


def main(argv: list[str]) -> Measurement:
    """Measure, draw and print.

    Raises:
        UserError: something the user can put right.
    """
    refuse_signs(argv)
    options = AffinityOptions(**parse_explicit(argv, __doc__, AffinityOptions))
    if not options.output.endswith(".png"):
        raise OptionError(f"--output must end in .png, got {options.output}")
    numbers = options.json or options.output.removesuffix(".png") + ".json"
    inputs = {"CHECKPOINT": options.checkpoint, "IMAGE": options.image}
    check_files(inputs, outputs={"--output": options.output, "--json": numbers})
    head = parse_head(options.head)
    check_compute(options.device, None)

    saved = find_network(options.checkpoint, options.model, options.model_kwargs)
    compute = make_compute(join_world(options.device).device, "float32", channels_last=True)
    model = saved.build(options.num_classes, options.input_size)
    load_unfused(model, options.checkpoint, options.use_ema)
    model.to(device=compute.device, memory_format=compute.memory_format)
    image_format = saved.image_format(model, options.input_size, options.crop_pct)
    pixels = evaluation_transform(image_format)(decode_image(options.image, options.image, upright=True))
    queries = parse_queries(options.queries, tuple(pixels.shape[1:]))
    image, _ = compute.prepare((pixels[None], pixels), image_format)
    measurement = measure(model, image, options.layers, queries, head)

    prediction = describe_prediction(measurement.probabilities, saved.classes)
    with atomic_write(options.output) as file:
        draw_affinities(file, pixels.permute(1, 2, 0).numpy(), measurement, saved.name, prediction)
    content = {
        "checkpoint": options.checkpoint, "image": options.image, "model": saved.name,
        "prediction": prediction, **measurement.as_dict(),
    }  # fmt: skip
    with atomic_write(numbers) as file:
        file.write(json.dumps(content, allow_nan=False).encode())
    print(*describe(measurement), "", f"picture  {options.output}", f"numbers  {numbers}", sep="\n")
    return measurement


def describe_prediction(probabilities: list[float], classes: list[str] | None) -> dict | None:
    """The most probable class; None for a network without a classifier."""
    if not probabilities:
        return None
    label = max(range(len(probabilities)), key=probabilities.__getitem__)
    return {"label": label, "name": classes[label] if classes else None, "probability": probabilities[label]}


def describe(measurement: Measurement) -> list[str]:
    """A table of the layers: their factors, and mean distances in pixels and as a part of a uniform affinity's."""
    width = max(len(layer.name) for layer in measurement.layers)
    header = "".join(f"{term + ' distance':>20}" for term in TERMS)
    lines = [f"{'layer':{width}}{'grid':>9}{'alpha':>8}{'beta':>8}{header}"]
    for layer in measurement.layers:
        factors = "".join(f"{'-' if factor is None else f'{factor:.3f}':>8}" for factor in (layer.alpha, layer.beta))
        distances = "".join(f"{_describe_distance(layer, term):>20}" for term in TERMS)
        lines.append(f"{layer.name:{width}}{'×'.join(map(str, layer.grid_size)):>9}{factors}{distances}")
    return [*lines, *(f"{name} is left out: {reason}" for name, reason in measurement.skipped.items())]


def _describe_distance(layer: Layer, term: str) -> str:
    mean = layer.mean_distance(term)
    if mean is None:
        return "-"
    return f"{mean:.2f} px {mean / layer.uniform_distance:6.1%}" if layer.uniform_distance else f"{mean:.2f} px"


if __name__ == "__main__":
    run_program(main)
