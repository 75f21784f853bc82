"""DDP, FSDP2, synchronized norms, two gloo processes: gradients and statistics of one process with the whole batch."""

import copy
import os
import sys
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from container_kernels import ContainerBlock, ContextAggregation, LocalAggregation
from container_kernels.models.base import PatchEmbed
from container_kernels.modules.linear import ChannelLinear, ChannelMlp

WORLD = 2


@contextmanager
def gloo(rank, store, world_size=WORLD):
    """The process group of a spawned process, which ends with the block unless it raises."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
    # Without Python's shutdown: a thread of gloo's that lets go of a tensor during it now and then aborts the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def make_block(wrapper):
    torch.manual_seed(0)
    if wrapper == "synchronized":
        return ContainerBlock(16, 2)
    # A norm within each sample, so that splitting the batch changes nothing.
    return ContainerBlock(16, 2, norm_layer=lambda dim: nn.GroupNorm(4, dim))


def gradients(block, parameters, x):
    block(x).square().mean().backward()
    return {name: parameter.grad for name, parameter in parameters}


def check_rank(rank, wrapper, store):
    with gloo(rank, store):
        torch.manual_seed(1)
        x = torch.randn(4, 16, 5, 3)
        expected = gradients(whole := make_block(wrapper), list(whole.named_parameters()), x)
        block = make_block(wrapper)
        if wrapper == "ddp":
            parallel = DistributedDataParallel(block)
        elif wrapper == "synchronized":
            # DistributedDataParallel wants GPUs for such norms; what it does to the gradients is done below.
            parallel = block = nn.SyncBatchNorm.convert_sync_batchnorm(block)
        else:
            parallel = fully_shard(block, mesh=dist.init_device_mesh("cpu", (WORLD,)))
        grads = gradients(parallel, list(block.named_parameters()), x.chunk(WORLD)[rank])
        for name, grad in grads.items():
            if wrapper == "synchronized":
                dist.all_reduce(grad)
                grad /= WORLD
            full = grad.full_tensor() if wrapper == "fsdp2" else grad
            torch.testing.assert_close(full, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(dict(block.named_buffers()), dict(whole.named_buffers()))


def check_unlike_batches(rank, ratio, store):
    """Batches of 3, 0 and 1 samples, whose means lie a deviation apart: statistics and gradients of all samples."""
    with gloo(rank, store, world_size=3):
        torch.manual_seed(1)
        x = torch.randn(4, 16, 5, 3) + ratio + torch.arange(4).view(4, 1, 1, 1)
        whole = make_block("synchronized")
        with torch.no_grad():
            whole.pos_embed.weight /= ratio
        block = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(whole))
        rows = whole.pos_embed(x).detach().double().transpose(0, 1).flatten(1)
        exact = copy.deepcopy(whole).double()
        for network, part in ((whole, x), (exact, x.double()), (block, x.split([3, 0, 1])[rank])):
            network(part).square().sum().backward()
        for name, parameter in block.named_parameters():
            dist.all_reduce(parameter.grad)
            expected = exact.get_parameter(name).grad
            error, allowed = (
                (grad - expected).abs().max() for grad in (parameter.grad, whole.get_parameter(name).grad)
            )
            assert error <= 2 * allowed + 16 * torch.finfo(torch.float32).eps * expected.abs().max(), name
        variance, mean = torch.var_mean(rows, 1)
        torch.testing.assert_close(block.norm1.running_mean.double(), 0.1 * mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(block.norm1.running_var.double(), 0.9 + 0.1 * variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("ratio", [1, 1e3])
def test_batches_of_unlike_sizes(ratio, tmp_path):
    mp.spawn(check_unlike_batches, args=(ratio, tmp_path / "store"), nprocs=3)


def check_tensor_parallel(rank, store):
    with gloo(rank, store):
        x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1))
        block = make_block("synchronized").eval()
        expected = block(x)
        plan = {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()}
        parallelize_module(block.mlp, dist.init_device_mesh("cpu", (WORLD,)), plan)
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_layers_of_a_block_can_be_split_over_processes(tmp_path):
    mp.spawn(check_tensor_parallel, args=(tmp_path / "store",), nprocs=WORLD)


def check_group_of_one(rank, store):
    with gloo(0, store, world_size=1):
        block = nn.SyncBatchNorm.convert_sync_batchnorm(make_block("synchronized"))
        with pytest.raises(ValueError, match="expected more than 1 value per channel"):
            block(torch.randn(1, 16, 1, 1))
        assert block(torch.randn(2, 16, 3, 3)).isfinite().all()
        assert all(buffer.isfinite().all() for buffer in block.buffers())


def test_a_group_of_one_process_is_none(tmp_path):
    mp.spawn(check_group_of_one, args=(tmp_path / "store",), nprocs=1)


def check_outputs_of_sharded_layers(rank, store):
    with gloo(0, store, world_size=1):
        layers = (
            ContainerBlock(16, 2),
            ContainerBlock(16, 2, dynamic=False, pos_embed=False),
            ContextAggregation(16, 2),
            LocalAggregation(16),
            ChannelLinear(16, 16),
            ChannelMlp(16, 32),
            PatchEmbed(16, 16, 1),
        )
        for layer in layers:
            x = torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
            expected = layer(x)
            assert expected._base is not None  # nothing is copied where nobody shards
            y = fully_shard(layer, mesh=dist.init_device_mesh("cpu", (1,)))(x)
            assert y._base is None and y.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(y, expected)


def test_a_layer_that_fsdp_shards_returns_no_view(tmp_path):
    """FSDP2 warns of views: an in-place operation on one would lose its hooks."""
    mp.spawn(check_outputs_of_sharded_layers, args=(tmp_path / "store",), nprocs=1)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2", "synchronized"])
def test_gradients_are_those_of_the_whole_batch(wrapper, tmp_path):
    mp.spawn(check_rank, args=(wrapper, tmp_path / "store"), nprocs=WORLD)
