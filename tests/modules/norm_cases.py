"""Blocks with norms of every kind that is known, and of others."""

import torch
from timm.layers import BatchNormAct2d, LayerNorm2d
from timm.utils.model import freeze_batch_norm_2d
from torch import nn

from container_kernels import ContainerBlock


class DetrFrozenBatchNorm2d(nn.Module):
    """As in transformers: buffers alone, and no attribute `eps`."""

    def __init__(self, dim):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(dim))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)


NORMS = {
    "batch norm": nn.BatchNorm2d,
    "cumulative": lambda dim: nn.BatchNorm2d(dim, momentum=None),
    "momentum 0.9, eps 0.1": lambda dim: nn.BatchNorm2d(dim, eps=0.1, momentum=0.9),
    "no affine": lambda dim: nn.BatchNorm2d(dim, affine=False),
    "no running statistics": lambda dim: nn.BatchNorm2d(dim, track_running_stats=False),
    "synchronized": nn.SyncBatchNorm,
    "timm, no activation": lambda dim: BatchNormAct2d(dim, apply_act=False),
    "torchvision, frozen": lambda dim: freeze_batch_norm_2d(nn.BatchNorm2d(dim)),
    "timm, frozen": lambda dim: freeze_batch_norm_2d(BatchNormAct2d(dim, apply_act=False)),
    "transformers, frozen": DetrFrozenBatchNorm2d,
}
UNKNOWN = {
    "layer norm": LayerNorm2d,
    "group norm": lambda dim: nn.GroupNorm(2, dim),
    "instance norm": nn.InstanceNorm2d,
    "batch norm and activation": BatchNormAct2d,
    "frozen, and activation": lambda dim: freeze_batch_norm_2d(BatchNormAct2d(dim)),
    "identity": lambda dim: nn.Identity(),
}


def make_block(norm, *, training=True, dim=12, **arguments) -> ContainerBlock:
    """A float64 block whose norms have statistics, scales and shifts as after training."""
    torch.manual_seed(0)
    block = ContainerBlock(dim, dim // 4 or 1, 2.0, **arguments).double()
    block.norm1, block.norm2 = NORMS.get(norm, UNKNOWN.get(norm))(dim), NORMS.get(norm, UNKNOWN.get(norm))(dim)
    for name, tensor in block.state_dict().items():
        if name.startswith("norm") and tensor.dtype != torch.long:
            tensor.uniform_(0.5, 1.5)
    return block.double().train(training)


def one_after_the_other(block: ContainerBlock, x: torch.Tensor) -> torch.Tensor:
    """The block's definition, by calling its layers."""
    x = block.pos_embed(x)
    x = x + block.drop_path(block.aggregation(block.norm1(x)))
    return x + block.drop_path(block.mlp(block.norm2(x)))


def image(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) + torch.linspace(-1, 2, shape[1]).view(-1, 1, 1)
    return x.to(dtype).to(memory_format=torch.channels_last)
