"""Every detector behind the one interface: steps, gradients, odd targets, copies, checkpoints, fusing."""

import copy
import subprocess
import sys

import pytest
import torch
from small_detectors import CLASSES, NAMES, WITH_QUERIES, batch, small_detector, small_images, small_settings, target
from timm.utils import reparameterize_model
from trial_runs import PROGRAMS

from container_kernels.modules.fused_block import FusedContainerBlock
from tasks.detection.detectors import DETECTORS, PRESETS, body_of, build_detector, freeze_norms, preset
from tasks.detection.export import TRACED
from tasks.detection.options import DETECTOR_NAMES, SET_DETECTORS
from tasks.detection.recipes import DEFAULT_RECIPES, OF_DETECTOR, OF_SMALL_DETECTORS
from training.errors import OptionError

# Replicas of DistributedDataParallel wait for every gradient: what has none is named here.
WITHOUT_GRADIENT = {name: set() for name in NAMES}
SIZES = [(64, 96), (75, 50)]


def test_tables_name_the_same_detectors():
    tables = [PRESETS["coco"], PRESETS["scenes"], DEFAULT_RECIPES]
    tables += [{detector for recipe, detector in OF_DETECTOR if recipe == name} for name in OF_SMALL_DETECTORS]
    assert all(set(table) == set(DETECTORS) == set(DETECTOR_NAMES) for table in tables)
    assert set(TRACED) | set(SET_DETECTORS) == set(DETECTORS)


def total(losses):
    return sum(losses.values())


def assert_same_objects(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_training_step_reaches_every_parameter(name):
    detector = small_detector(name)
    losses = detector(*batch())
    assert all(loss.shape == () and loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    total(losses).backward()
    without = {key for key, parameter in detector.named_parameters() if parameter.grad is None}
    assert without == WITHOUT_GRADIENT[name]
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_objects_lie_in_the_image_in_its_pixels(name):
    detector = small_detector(name).eval()
    images, _ = batch()
    with torch.no_grad():
        found = detector(images)
    assert len(found) == len(images)
    for objects, (height, width) in zip(found, SIZES, strict=True):
        count = len(objects["boxes"])
        assert 0 < count <= 20
        assert objects["boxes"].shape == (count, 4) and objects["boxes"].dtype == torch.float32
        assert objects["scores"].shape == objects["labels"].shape == (count,)
        assert objects["labels"].dtype == torch.int64
        left, top, right, bottom = objects["boxes"].unbind(1)
        assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
        assert (right >= left).all() and (bottom >= top).all()
        assert (objects["labels"] >= 0).all() and (objects["labels"] < CLASSES).all()
        assert (objects["scores"].diff() <= 0).all() and (objects["scores"] >= 0).all()
        assert (objects["scores"] <= 1).all()
        assert ("masks" in objects) == DETECTORS[name].gives_masks
        if "masks" in objects:
            assert objects["masks"].shape == (count, height, width)
            assert objects["masks"].min() >= 0 and objects["masks"].max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_targets_of_every_kind(name):
    """No objects in one image or in all, one pixel, all of the image, more than there are queries."""
    detector = small_detector(name)
    size = (64, 64)
    empty, pixel = target([], [], size), target([[63, 63, 64, 64]], [2], size)
    everything, crowded = target([[0, 0, 64, 64]], [0], size), target([[4, 4, 30, 30]] * 9, [1] * 9, size)
    for targets in ([empty, pixel], [empty, empty], [everything, crowded]):
        given = copy.deepcopy(targets)
        losses = detector(small_images(size, size), targets)
        assert total(losses).isfinite(), losses
        detector.zero_grad()
        total(losses).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        assert_same_objects(targets, given)  # the caller's stay as they are


@pytest.mark.parametrize("name", NAMES)
def test_labels_mean_the_same_inside_and_outside(name):
    """A detector that learns one image answers with the label that it was given: backgrounds are no class."""
    detector = small_detector(name, score_threshold=0.05)
    size = (64, 64)
    images, targets = small_images(size), [target([[8, 8, 56, 56]], [CLASSES - 1], size)]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        total(detector(images, targets)).backward()
        optimizer.step()
    # Statistics of norms in evaluation are not those of 25 batches of one image.
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    with torch.no_grad():
        best = detector.eval()(images)[0]
    assert best["labels"][0] == CLASSES - 1


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_gives_the_same_detector(name):
    detector, other = small_detector(name).eval(), small_detector(name, seed=1).eval()
    images, _ = batch()
    other.load_state_dict(detector.state_dict())
    with torch.no_grad():
        assert_same_objects(other(images), detector(images))


@pytest.mark.parametrize("name", NAMES)
def test_copy_is_the_same_and_its_own(name):
    detector = small_detector(name).eval()
    images, _ = batch()
    with torch.no_grad():
        before = detector(images)
        copied = copy.deepcopy(detector)
        assert_same_objects(copied(images), before)
        for parameter in copied.parameters():
            parameter.add_(1.0)
        assert_same_objects(detector(images), before)
    assert [*copied.state_dict()] == [*detector.state_dict()]
    assert len([*copied.parameters()]) == len([*detector.parameters()])  # what was shared still is


@pytest.mark.parametrize("name", NAMES)
def test_fused_backbone_is_equal(name):
    detector = small_detector(name).eval()
    fused = reparameterize_model(detector)
    assert sum(isinstance(module, FusedContainerBlock) for module in fused.modules()) == 4 - (name in ONE_STRIDE)
    image = torch.stack(small_images((64, 96)))
    with torch.no_grad():
        expected, actual = body_of(detector)(image), body_of(fused)(image)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        if name in WITH_QUERIES:  # others sort and suppress boxes, of which rounding may choose another
            mask, sizes = image.new_ones(1, 64, 96, dtype=torch.bool), torch.tensor([[96, 64]])
            for one, other in zip(fused.predict(image, mask, sizes), detector.predict(image, mask, sizes), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert len(fused(batch()[0])) == 2


ONE_STRIDE = ("detr", "conditional-detr", "smca-detr")  # 16 of the four strides: the last stage is left out


@pytest.mark.parametrize("name", NAMES)
def test_drop_path_drops_in_training_alone(name):
    detector = small_detector(name, drop_path=0.9, dropout=0.0)
    image = torch.stack(small_images((64, 64), (64, 64)))
    body = freeze_norms(detector) and body_of(detector)

    def features(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return body(image)[-1]

    assert torch.equal(features(0), features(0))
    assert any(not torch.equal(features(0), features(seed)) for seed in range(1, 6))
    detector.eval()
    assert torch.equal(features(0), features(1))


@pytest.mark.parametrize("name", NAMES)
def test_frozen_norms_stay_as_they_are(name):
    detector = small_detector(name)
    live = detector.state_dict()
    body = body_of(detector)
    norms = [m for m in body.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert freeze_norms(detector) == len(norms) > 0
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in body.modules())
    frozen = copy.deepcopy(body.state_dict())
    loss = total(detector(*batch()))
    loss.backward()
    learned = dict(body.named_parameters())
    for key, tensor in body.state_dict().items():
        assert key in learned or torch.equal(tensor, frozen[key])
    assert all(p.grad is not None for p in detector.parameters())
    detector.load_state_dict(live)  # a checkpoint from before


@pytest.mark.parametrize("name", NAMES)
def test_autocast_keeps_losses_and_boxes_in_float32(name):
    detector = small_detector(name)
    images, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(images, targets)
        found = detector.eval()(images)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())
    for objects in found:
        assert objects["boxes"].dtype == objects["scores"].dtype == torch.float32


@pytest.mark.parametrize("preset_name", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_presets_can_be_built(name, preset_name):
    if name in WITH_QUERIES:
        pytest.importorskip("transformers")
    with torch.device("meta"):  # sizes of papers take seconds to draw
        detector = build_detector(name, 80, preset(preset_name, name))
    assert 0.5e6 < sum(p.numel() for p in detector.parameters()) < 60e6


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("retinanet", {"anchor_sizes": ((8,),)}, "anchor_sizes: expected 3 tuples"),
        ("retinanet", {"head_convs": 5}, "head_convs: expected 1 to 4, got 5"),
        ("retinanet", {"box_loss": "l2"}, "box_loss: expected one of l1"),
        ("retinanet", {"coarser_levels": 1}, "coarser_levels: expected 0 or 2"),
        ("retinanet", {"fpn_norm": "layer"}, "fpn_norm: expected one of none, batch"),
        ("mask-rcnn", {"mask_convs": ()}, "mask_convs: expected at least one"),
        ("mask-rcnn", {"coarser_levels": 2}, "coarser_levels: expected 0 or 1"),
        ("retinanet", {"backbone": "no_such_net"}, "--model no_such_net cannot be built"),
        ("retinanet", {"model_kwargs": {"colour": 1}}, "--model container cannot be built as a backbone with colour=1"),
        ("retinanet", {"strides": (8, 16, 64)}, "no features of stride 64, only of 4, 8, 16, 32"),
        ("detr", {"strides": (16, 32)}, "strides: expected one, got 16, 32"),
        ("detr", {"d_model": 30}, "d_model: expected a multiple of 4"),
        ("conditional-detr", {"decoder_layers": 1}, "decoder_layers: expected at least 2"),
        ("deformable-detr", {"decoder_layers": 1}, "decoder_layers: expected at least 2 with box_refinement"),
        ("deformable-detr", {"two_stage": True}, "two_stage: transformers has no loss"),
        ("deformable-detr", {"d_model": 48}, "d_model: expected a multiple of 32"),
        ("deformable-detr", {"levels": 2}, "levels: expected at least the 3 strides"),
    ],
)
def test_settings_that_do_not_go_together(name, changes, words):
    with pytest.raises(OptionError, match=words):
        small_detector(name, **changes)


def test_names():
    with pytest.raises(OptionError, match="expected one of retinanet, faster-rcnn"):
        build_detector("yolo", 3, small_settings("detr"))
    with pytest.raises(OptionError, match="preset: expected one of coco, scenes"):
        preset("voc", "detr")
    with pytest.raises(OptionError, match="num_classes: expected at least 1"):
        build_detector("retinanet", 0, small_settings("retinanet"))


def test_torchvision_alone_is_enough_for_its_detectors():
    code = """
import sys
sys.modules["transformers"] = None
import torch
from tasks.detection.detectors import build_detector, preset
from training.errors import OptionError

def refusal(name):
    try:
        build_detector(name, 3, preset("scenes", name))
    except OptionError as error:
        return str(error)

assert refusal("retinanet") is refusal("mask-rcnn") is None
for name in ("detr", "conditional-detr", "smca-detr", "deformable-detr"):
    assert "needs transformers: pip install 'container_kernels[detection]'" in refusal(name), refusal(name)
del sys.modules["transformers"]
sys.modules["scipy"] = None
assert "needs scipy: pip install" in refusal("detr"), refusal("detr")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROGRAMS, timeout=120)
