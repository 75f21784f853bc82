"""Every branch of the Triton mix: whole rows or online softmax, one tile or many, whatever the launch rules pick."""

import pytest
import torch
from backends import DEVICES
from context_aggregation_cases import run, summed_by_mixing_weights

from container_kernels import context_aggregation
from container_kernels.ops.context_aggregation.triton import config
from container_kernels.ops.context_aggregation.triton.config import BackwardConfig, ForwardConfig, MixConfig
from container_kernels.testing import MixCase, assert_within_budget, eager_context_aggregation, poisoned_outputs

# 49 tokens: four tiles of 16, the last with one token; head_dim and tokens are both padded.
CASES = [
    MixCase(batch=1, height=7, width=7, head_dim=20, kernel=(3, 3), dense=True),
    MixCase(batch=1, height=7, width=7, head_dim=32, kernel=None),
]
SMALL = MixConfig(16, 16, 4, 1, tail=16)
TILINGS = {
    "whole row": (ForwardConfig(16, 64, 4, 1, 0, whole_row=True), BackwardConfig(row=(MixConfig(16, 64, 4, 1, 0),))),
    "tiles": (ForwardConfig(16, 16, 4, 1, tail=16, whole_row=False), BackwardConfig(query=(SMALL,), key=(SMALL,))),
    "oblong tiles": (
        ForwardConfig(32, 16, 4, 1, tail=16, whole_row=False),
        BackwardConfig(query=(MixConfig(32, 16, 4, 1, tail=16),), key=(MixConfig(16, 32, 4, 1, tail=16),)),
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tiling", TILINGS)
def test_every_tiling_matches_float64(monkeypatch, tiling, dtype, case):
    forward, backward = TILINGS[tiling]
    monkeypatch.setattr(config, "forward_config", lambda *_: (forward,))
    monkeypatch.setattr(config, "backward_config", lambda *_: backward)
    inputs = case.make(dtype, DEVICES["triton"], grad=True)
    exact, exact_grads = run(context_aggregation, inputs.double(), backend="reference")
    eager, eager_grads = run(eager_context_aggregation, inputs.clone())
    with poisoned_outputs():
        out, grads = run(context_aggregation, inputs, backend="triton")
    assert_within_budget("out", out, eager, exact)
    terms = summed_by_mixing_weights(inputs.double(), exact)
    for name in exact_grads:
        assert_within_budget(name, grads[name], eager_grads[name], exact_grads[name], summed=terms.get(name))


def test_launch_rules_reach_both_kernels():
    """What the tests above force is also what users get: short rows whole, long ones and float32 in tiles."""
    assert config.forward_config(49, 32, torch.bfloat16)[0].whole_row
    assert config.forward_config(196, 32, torch.bfloat16)[0].whole_row
    assert not any(tile.whole_row for tile in config.forward_config(784, 32, torch.bfloat16))
    assert not any(tile.whole_row for tile in config.forward_config(49, 32, torch.float32))
    assert config.backward_config(196, 32, torch.float16).row
    assert not config.backward_config(784, 32, torch.float16).row


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tiles_cover_every_problem(dtype):
    for n in [*range(1, 300), 4200]:
        for head_dim in (1, 16, 17, 33, 64, 100, 129, 256):
            backward = config.backward_config(n, head_dim, dtype)
            launches = [*config.forward_config(n, head_dim, dtype), *backward.row, *backward.query, *backward.key]
            assert bool(backward.row) != bool(backward.query and backward.key)
            for launch in launches:
                holds_all_keys = launch in backward.row or getattr(launch, "whole_row", False)
                assert launch.block_n >= n or not holds_all_keys, launch
                assert min(launch.block_m, launch.block_n) >= 16, launch
                assert max(launch.block_m, launch.block_n) <= config.MAX_TOKENS_PER_TILE, launch
                for size in (launch.block_m, launch.block_n, launch.num_warps):
                    assert size & (size - 1) == 0, launch


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_small_tiles_of_narrow_heads_load_16_bytes_per_thread(precision):
    for n in range(1, 1000):
        backward = config.backward_config(n, 16, torch.float32, precision)
        for tile in (*config.forward_config(n, 16, torch.float32, precision), *backward.query, *backward.key):
            assert max(tile.block_m, tile.block_n) * 16 * 4 >= tile.num_warps * 32 * 16, tile


@pytest.mark.parametrize("tokens", [784, 1050, 3136])
@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tiles_of_the_networks_waste_less_than_a_tenth(tokens, head_dim, dtype):
    """Scores computed beyond those that exist: tiles are powers of two, grids are not."""
    backward = config.backward_config(tokens, head_dim, dtype)
    forward = config.forward_config(tokens, head_dim, dtype)
    for candidates, owned, walked in (
        (forward, "block_m", "block_n"),
        (backward.query, "block_m", "block_n"),
        (backward.key, "block_n", "block_m"),
    ):
        own, walk = getattr(candidates[0], owned), getattr(candidates[0], walked)
        steps = [walk] * (tokens // walk) + [candidates[0].tail]
        assert tokens <= sum(steps) < tokens + 16
        assert -(-tokens // own) * own * sum(steps) / tokens**2 - 1 < 0.1, candidates[0]
