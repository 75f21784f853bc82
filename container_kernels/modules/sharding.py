# SPDX-License-Identifier: MIT
"""Requirements of FSDP2 on a layer that it shards."""

import torch
from torch import Tensor, nn

if torch.distributed.is_available():
    from torch.distributed.fsdp import FSDPModule as _Sharded
else:
    _Sharded = ()


def own_output(layer: nn.Module, y: Tensor) -> Tensor:
    """`y` as the output of `layer`: a copy where FSDP2 shards the layer and `y` is a view, else itself.

    Images are views of what operations write channels last. FSDP2 hangs hooks on outputs, which an in-place operation
    on a view would lose, and the gradients with them.
    """
    return y.clone() if isinstance(layer, _Sharded) and y._base is not None else y
