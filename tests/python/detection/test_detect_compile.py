"""detect.py --compile: the backbone is one graph for images of many sizes, and the run is what it is without."""

import functools
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from small_detectors import BODY, small_detector, small_images, target
from torch._dynamo.utils import counters

import detect
from tasks.detection.detectors import body_of
from tasks.detection.task import Detection

pytest.importorskip("faster_coco_eval")


def run_of(folder, detector, *more):
    arguments = [f"{key}={value}" for key, value in {**BODY, "depths": (1, 0, 1, 0)}.items()]
    return detect.main([
        "--detector", detector, "--output-dir", str(folder), "--train-scenes", "12", "--val-scenes", "3", "--epochs",
        "1", "--batch-size", "4", "--short-sides", "64", "96", "128", "--longest-side", "128", "--warmup-steps", "1",
        "--device", "cpu", "--drop-path", "0.2", "--model", "container", "--model-kwargs", *arguments, *more,
    ])  # fmt: skip


@pytest.fixture
def graphs(monkeypatch, fresh_compiler):
    """The graphs that are compiled, which run as they are, so that a compiled run is the same to the bit."""
    found = []

    def record(graph, inputs, **options):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=record))
    counters.clear()
    return found


@pytest.mark.parametrize("detector", ["retinanet", "deformable-detr"])
def test_a_compiled_run_is_the_same(tmp_path, detector, graphs):
    if detector == "deformable-detr":
        pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[detection]'")
    plain = run_of(tmp_path / "plain", detector)
    assert not graphs
    run = run_of(tmp_path / "compiled", detector, "--compile")
    assert graphs and not counters["graph_break"]
    assert run.network is run.model and [*run.model.state_dict()] == [*plain.model.state_dict()]
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, plain.model.state_dict()[name]), name
    assert run.history[0]["val_AP"] == plain.history[0]["val_AP"]


def compiled(name):
    detector = small_detector(name)
    assert Detection.compiled(SimpleNamespace(), detector) is detector
    return detector


def step(detector, *size):
    detector.zero_grad()
    sum(detector(small_images(size), [target([[4, 6, 40, 50]], [0], size)]).values()).backward()
    return next(parameter.grad for parameter in body_of(detector).parameters())


def test_images_of_many_sizes_are_few_graphs(graphs):
    """The compiler's limit, which is an error here, would leave the rest of a run uncompiled."""
    detector = compiled("retinanet")
    for size in ((64, 96), (96, 64), (64, 64), (128, 128), (160, 96), (32, 64)):
        step(detector, *size)
    assert 2 <= len(graphs) <= 4
    detector.eval()
    for size in ((64, 96), (96, 64), (128, 128)):
        with torch.inference_mode():
            detector(small_images(size))
    assert len(graphs) <= 7


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_pytorchs_compiler_has_the_gradients(fresh_compiler):
    """Of sizes as symbols too, at which it stopped: half a minute per graph."""
    plain, fast = small_detector("retinanet"), compiled("retinanet")
    for size in ((64, 96), (96, 64), (128, 96)):
        torch.testing.assert_close(step(fast, *size), step(plain, *size), rtol=1e-3, atol=1e-5)
