# SPDX-License-Identifier: MIT
"""A network of ours, or any pyramid of timm's, as the backbone of detectron2's RetinaNet and Mask R-CNN.

In a LazyConfig, with this file beside it:

    from detectron2 import model_zoo
    from detectron2_backbone import use_in_mask_rcnn  # or use_in_retinanet

    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    dataloader = model_zoo.get_config("common/data/coco.py").dataloader
    use_in_mask_rcnn(model, dataloader, "container_light", checkpoint_path="container_light.pth")

Our networks are trained on RGB images; detectron2 reads BGR, by default and in two places, without a word where they
do not agree. Both functions set both.
"""

import timm
from detectron2.config import LazyCall
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

import container_kernels  # noqa: F401  registers our models with timm


class TimmBackbone(Backbone):
    """The features of timm's model `name` at `strides`, as detectron2 wants them: by names, "stride4" to "stride32".

    Args:
        name: a model of timm that has `features_only`.
        strides: of the features, fine to coarse.
        arguments: of the model, such as `checkpoint_path` or `drop_path_rate`.

    Raises:
        ValueError: the model has no features of one of the strides.
    """

    def __init__(self, name: str, strides: tuple[int, ...] = (4, 8, 16, 32), **arguments) -> None:
        super().__init__()
        offered = timm.create_model(name, features_only=True).feature_info.reduction()
        if missing := [stride for stride in strides if stride not in offered]:
            raise ValueError(f"{name} has no features of stride {missing}, only of {offered}")
        indices = tuple(offered.index(stride) for stride in strides)
        self.body = timm.create_model(name, features_only=True, out_indices=indices, **arguments)
        channels = self.body.feature_info.channels()
        self._shapes = {
            f"stride{stride}": ShapeSpec(channels=width, stride=stride)
            for stride, width in zip(strides, channels, strict=True)
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._shapes, self.body(x), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes


def use_in_retinanet(model, dataloader, name: str, **arguments) -> None:
    """Change detectron2's configuration of RetinaNet, in place: features of strides 8, 16 and 32, P6 from the last.

    Args:
        model: `common/models/retinanet.py`'s, a LazyConfig node.
        dataloader: `common/data/coco.py`'s, or None where it reads RGB already.
        name, arguments: of `TimmBackbone`.
    """
    _use(model, dataloader, name, (8, 16, 32), arguments)
    widths = timm.create_model(name, features_only=True).feature_info.channels()
    model.backbone.top_block.in_channels = widths[-1]
    model.backbone.top_block.in_feature = "stride32"


def use_in_mask_rcnn(model, dataloader, name: str, **arguments) -> None:
    """Change detectron2's configuration of Mask R-CNN or Faster R-CNN, in place: features of strides 4 to 32.

    Args:
        model: `common/models/mask_rcnn_fpn.py`'s, a LazyConfig node.
        dataloader, name, arguments: as in `use_in_retinanet`.
    """
    _use(model, dataloader, name, (4, 8, 16, 32), arguments)


def _use(model, dataloader, name: str, strides: tuple[int, ...], arguments: dict) -> None:
    model.backbone.bottom_up = LazyCall(TimmBackbone)(name=name, strides=strides, **arguments)
    model.backbone.in_features = [f"stride{stride}" for stride in strides]
    model.pixel_mean = [255 * value for value in IMAGENET_DEFAULT_MEAN]
    model.pixel_std = [255 * value for value in IMAGENET_DEFAULT_STD]
    model.input_format = "RGB"
    for part in () if dataloader is None else (dataloader.train, dataloader.test):
        part.mapper.image_format = "RGB"
