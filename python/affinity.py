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

import json

from affinity_maps.description import describe, describe_prediction
from affinity_maps.figure import draw_affinities
from affinity_maps.files import check_files, load_unfused
from affinity_maps.measure import Measurement, measure
from affinity_maps.options import AffinityOptions
from affinity_maps.selection import parse_head, parse_queries, refuse_signs
from labelled_images.evaluation_transform import evaluation_transform
from networks.saved_network import find_network
from training.checkpoint import atomic_write
from training.compute import make_compute
from training.distributed import join_world
from training.errors import OptionError
from training.image_decoding import decode_image
from training.option_checks import check_compute
from training.options import parse_explicit
from training.program import run_program


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
    measurement = measure(model, compute.normalize(pixels[None], image_format), options.layers, queries, head)

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


if __name__ == "__main__":
    run_program(main)
