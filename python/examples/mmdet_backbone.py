# SPDX-License-Identifier: MIT
"""A network of ours, or any pyramid of timm's, as the backbone of mmdetection's detectors.

In a configuration that inherits one of theirs, with this file on the path:

    _base_ = "configs/retinanet/retinanet_pvtv2-b2_fpn_1x_coco.py"  # or Mask R-CNN's
    custom_imports = dict(imports=["mmdet_backbone"])
    model = dict(
        backbone=dict(_delete_=True, type="TimmFeatures", model_name="container_light"),
        neck=dict(in_channels=[64, 128, 320, 512]),
    )

Our networks are trained on RGB images, to which mmdetection turns its BGR by `bgr_to_rgb=True` of the
`data_preprocessor`; these configurations have it.
"""

import timm
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

import container_kernels  # noqa: F401  registers our models with timm


@MODELS.register_module()  # the root of all registries: mmdetection's finds it too
class TimmFeatures(BaseModule):
    """The features of timm's model `model_name` at `strides`, fine to coarse.

    Args:
        model_name: a model of timm that has `features_only`.
        strides: of the features.
        init_cfg: mmengine's, for weights of the whole module.
        arguments: of the model, such as `checkpoint_path` or `drop_path_rate`.

    Raises:
        ValueError: the model has no features of one of the strides.
    """

    def __init__(
        self, model_name: str, strides: tuple[int, ...] = (4, 8, 16, 32), init_cfg: dict | None = None, **arguments
    ) -> None:
        super().__init__(init_cfg)
        offered = timm.create_model(model_name, features_only=True).feature_info.reduction()
        if missing := [stride for stride in strides if stride not in offered]:
            raise ValueError(f"{model_name} has no features of stride {missing}, only of {offered}")
        indices = tuple(offered.index(stride) for stride in strides)
        self.body = timm.create_model(model_name, features_only=True, out_indices=indices, **arguments)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.body(x))
