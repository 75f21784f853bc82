# SPDX-License-Identifier: MIT
"""The layers of a block that are part of a fused pass, and why the others are called: `forward`, `fuse()` and
`why_not_fused` read one answer."""

from typing import NamedTuple

from torch import nn

from .context_aggregation import ContextAggregation
from .fusible import reasons, why_not_plain, why_not_sample_scale
from .linear import ChannelMlp, why_not_exact_gelu
from .local_aggregation import LocalAggregation
from .norm_folding import why_not_foldable, why_unknown


class Fusion(NamedTuple):
    """Of each layer of a block the reason why it is called on its own; None where it is part of a fused pass."""

    pos_embed: str | None
    norm1: str | None
    aggregation: str | None
    norm2: str | None
    mlp: str | None
    act: str | None = None

    def why_not_fused(self) -> str | None:
        """All reasons in words; None where no layer is called."""
        return reasons(**self._asdict())


def fusion_of(block: nn.Module) -> Fusion:
    """Of a `ContainerBlock` as it is now, in training or in evaluation mode."""
    position, drop_path = _why_position_called(block), _why_drop_path_called(block)
    aggregation = _why_aggregation_called(block) or drop_path
    mlp = why_not_plain(block.mlp, ChannelMlp) or block.mlp.why_not_fusible() or drop_path
    # Batch statistics are made by the passes that write the norms' inputs.
    embeds = position is None and isinstance(block.pos_embed, LocalAggregation)
    return Fusion(
        position,
        _why_norm_called(block.norm1, embeds, aggregation),
        aggregation,
        _why_norm_called(block.norm2, aggregation is None, mlp),
        mlp,
    )


def fusion_after_fuse(block: nn.Module) -> Fusion:
    """Of what `fuse()` makes of a `ContainerBlock` in evaluation mode."""
    drop_path = _why_drop_path_called(block)
    aggregation = _why_aggregation_called(block) or drop_path
    if aggregation is None and block.aggregation.token_mlp is not None:
        aggregation = "has a token MLP"
    mlp = why_not_plain(block.mlp, ChannelMlp) or block.mlp.why_projections_called() or drop_path
    return Fusion(
        _why_position_called(block),
        _why_norm_called(block.norm1, False, aggregation),
        aggregation,
        _why_norm_called(block.norm2, False, mlp),
        mlp,
        # It may be called between two projections.
        act=None if mlp else why_not_exact_gelu(block.mlp.act),
    )


def _why_position_called(block: nn.Module) -> str | None:
    return why_not_plain(block.pos_embed, LocalAggregation, nn.Identity)


def _why_aggregation_called(block: nn.Module) -> str | None:
    layer = block.aggregation
    return why_not_plain(layer, ContextAggregation) or layer.why_not_fusible()


def _why_drop_path_called(block: nn.Module) -> str | None:
    return reasons(drop_path=why_not_sample_scale(block.drop_path))


def _why_norm_called(norm: nn.Module, has_statistics: bool, layer: str | None) -> str | None:
    """`layer`: why the layer after it is called."""
    if layer is not None and why_unknown(norm) is None:
        return "comes before a layer that is called"
    return why_not_foldable(norm, has_statistics)
