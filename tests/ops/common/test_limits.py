"""Limits that stand in Python and in C++ agree, and what is beyond them is refused where the kernels are called."""

import pytest
import torch
from backends import DEVICES

from container_kernels import _extension
from container_kernels.ops.common import cuda_launch
from container_kernels.ops.common.validation import MAX_WINDOW
from container_kernels.ops.context_aggregation.backends import CUDA_HEAD_DIMS
from container_kernels.ops.deformable_attention.backends import MAX_HEAD_DIM, MAX_LEVELS


@pytest.fixture
def cuda_module():
    if DEVICES["cuda"] == "cuda":
        return _extension.cuda, torch.cuda.current_device()
    return _extension.load_cuda_emulator(), -1


def test_windows(cuda_module):
    module, _ = cuda_module
    assert tuple(module.square_windows) == cuda_launch.WINDOWS
    assert max(module.square_windows) == MAX_WINDOW
    with pytest.raises(ValueError, match="window: expected at most 11×11, got 13×3"):
        cuda_launch.compiled_window(13, 3)


@pytest.mark.parametrize("window", [(1, 1), (9, 9), (3, 5), (13, 13), (0, 3)])
def test_cuda_kernels_name_a_window_that_is_not_compiled(cuda_module, window):
    module, index = cuda_module
    code = _extension.DTYPE_CODES[torch.float32]
    given = "{}x{}".format(*window)
    for ask in (module.local_aggregation_forward_workspace, module.local_aggregation_backward_weight_workspace):
        arguments = (
            code,
            index,
            (1, 4, 4, 8),
            window,
            *([True] if ask is module.local_aggregation_forward_workspace else []),
        )
        with pytest.raises(ValueError, match=f"expected one of 3x3, 5x5, 7x7, 11x11, got {given}"):
            ask(*arguments)
    for ask in (module.context_aggregation_forward_shared_memory, module.context_aggregation_backward_shared_memory):
        with pytest.raises(ValueError, match=f"expected one of 3x3, 5x5, 7x7, 11x11, got {given}"):
            ask(code, (1, 16, 1, 8), (4, 4, *window))


def test_cuda_head_dims(cuda_module):
    module, _ = cuda_module
    code, most = _extension.DTYPE_CODES[torch.bfloat16], CUDA_HEAD_DIMS[-1]
    for ask in (module.context_aggregation_forward_shared_memory, module.context_aggregation_backward_shared_memory):
        needed = [ask(code, (1, 16, 1, head_dim), (4, 4, 0, 0)) for head_dim in range(1, most + 1)]
        steps = [head_dim for head_dim in range(1, most) if needed[head_dim - 1] != needed[head_dim]]
        assert steps == list(CUDA_HEAD_DIMS[:-1])
        for head_dim in (0, most + 1):
            with pytest.raises(ValueError, match=f"head_dim: expected 1 to {most}, got {head_dim}"):
                ask(code, (1, 16, 1, head_dim), (4, 4, 0, 0))


def deformable_attention_call(module, index, levels, head_dim, queries=1, batch=1):
    """A call without tensors, for what is refused before any kernel starts."""
    sizes = (batch, levels, queries, 1, head_dim, 1)
    module.deformable_attention_forward(
        _extension.DTYPE_CODES[torch.float32], index, 0, sizes, [1, 1] * levels, 0, (0, 0, 0, 1), 0, 0, 0
    )


def test_deformable_attention(cuda_module):
    module, index = cuda_module
    assert module.deformable_attention_max_levels == MAX_LEVELS["cuda"]
    assert module.deformable_attention_max_head_dim == MAX_HEAD_DIM["cuda"]
    for levels in (0, MAX_LEVELS["cuda"] + 1):
        with pytest.raises(ValueError, match=f"spatial_shapes: expected 1 to 16 levels, got {levels}"):
            deformable_attention_call(module, index, levels, 8)
    for head_dim in (0, MAX_HEAD_DIM["cuda"] + 1):
        with pytest.raises(ValueError, match=f"head_dim: expected 1 to 256, got {head_dim}"):
            deformable_attention_call(module, index, 1, head_dim)
    with pytest.raises(ValueError, match=f"sampling_locations: too large for one launch, {2**33} blocks"):
        deformable_attention_call(module, index, 1, 8, batch=2**33)
