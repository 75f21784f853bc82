"""The backbones for detectron2 and mmdetection, with stand-ins for what they take from there.

Neither package can be installed by a test; both were tried by hand (docs/detection.md).
"""

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

EXAMPLES = Path(__file__).parents[2] / "python" / "examples"


class Node(dict):
    """A node of a LazyConfig: attributes are items."""

    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__


@pytest.fixture
def modules(monkeypatch):
    """modules(name, attribute=value, …) pretends that a module is installed, and its packages."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def pretend(name, **attributes):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        vars(sys.modules[name]).update(attributes)

    yield pretend
    for name in ("detectron2_backbone", "mmdet_backbone"):
        sys.modules.pop(name, None)


@pytest.fixture
def detectron2(modules):
    modules("detectron2.config", LazyCall=lambda cls: lambda **arguments: Node(_target_=cls, **arguments))
    modules("detectron2.layers", ShapeSpec=lambda **fields: types.SimpleNamespace(**fields))
    modules("detectron2.modeling", Backbone=nn.Module)
    return importlib.import_module("detectron2_backbone")


def configuration():
    """What the functions touch of detectron2's own."""
    model = Node(
        backbone=Node(bottom_up=None, in_features=["res3", "res4", "res5"], top_block=Node(in_channels=2048)),
        pixel_mean=[103.53, 116.28, 123.675],
        pixel_std=[1.0, 1.0, 1.0],
        input_format="BGR",
    )
    parts = {part: Node(mapper=Node(image_format="BGR")) for part in ("train", "test")}
    return model, Node(**parts)


def build(node):
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    return node["_target_"](**arguments)


def test_detectron2_retinanet(detectron2):
    model, dataloader = configuration()
    detectron2.use_in_retinanet(model, dataloader, "container_light", drop_path_rate=0.1)
    backbone = build(model.backbone.bottom_up)
    features = backbone(torch.randn(1, 3, 64, 96))
    assert list(features) == model.backbone.in_features == ["stride8", "stride16", "stride32"]
    for name, shape in backbone.output_shape().items():
        assert features[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    top = model.backbone.top_block
    assert (top.in_channels, top.in_feature) == (backbone.output_shape()["stride32"].channels, "stride32")
    assert model.input_format == dataloader.train.mapper.image_format == dataloader.test.mapper.image_format == "RGB"
    assert model.pixel_mean == pytest.approx([123.675, 116.28, 103.53])
    assert model.pixel_std == pytest.approx([58.395, 57.12, 57.375])


def test_detectron2_mask_rcnn(detectron2):
    model, _ = configuration()
    detectron2.use_in_mask_rcnn(model, None, "container_light")
    shapes = build(model.backbone.bottom_up).output_shape()
    assert [shapes[name].channels for name in model.backbone.in_features] == [64, 128, 320, 512]
    assert [shapes[name].stride for name in model.backbone.in_features] == [4, 8, 16, 32]


@pytest.fixture
def mmdet(modules):
    class Registry(dict):
        def register_module(self):
            return lambda cls: self.setdefault(cls.__name__, cls)

    class BaseModule(nn.Module):
        def __init__(self, init_cfg=None):
            super().__init__()
            self.init_cfg = init_cfg

    modules("mmengine.registry", MODELS=Registry())
    modules("mmengine.model", BaseModule=BaseModule)
    return importlib.import_module("mmdet_backbone")


def test_mmdet(mmdet):
    backbone = sys.modules["mmengine.registry"].MODELS["TimmFeatures"](model_name="container_light")
    features = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(64, 16, 24), (128, 8, 12), (320, 4, 6), (512, 2, 3)]
    sum(f.sum() for f in features).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_missing_strides_are_named(detectron2, mmdet):
    for build_backbone in (detectron2.TimmBackbone, mmdet.TimmFeatures):
        with pytest.raises(
            ValueError, match=r"container_light has no features of stride \[2\], only of \[4, 8, 16, 32\]"
        ):
            build_backbone("container_light", strides=(2, 4))
