"""Code that calls Deformable DETR's extension gets the same numbers from us, in all the ways in which it is called."""

import sys

import pytest
import torch

from container_kernels.integrations import ms_deform_attn
from container_kernels.testing import eager_deformable_attention

SIZES = [(5, 7), (3, 4), (1, 2)]
LEVEL_START = torch.tensor([0, 35, 47])

# As models/ops/functions/ms_deform_attn_func.py is written.
FUNCTION_FILE = """
from torch.autograd import Function
from torch.autograd.function import once_differentiable
import MultiScaleDeformableAttention as MSDA

class MSDeformAttnFunction(Function):
    @staticmethod
    def forward(ctx, value, shapes, level_start_index, locations, weights, im2col_step):
        ctx.im2col_step = im2col_step
        output = MSDA.ms_deform_attn_forward(value, shapes, level_start_index, locations, weights, ctx.im2col_step)
        ctx.save_for_backward(value, shapes, level_start_index, locations, weights)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        grad_value, grad_locations, grad_weights = MSDA.ms_deform_attn_backward(
            *ctx.saved_tensors, grad_output, ctx.im2col_step)
        return grad_value, None, None, grad_locations, grad_weights, None
"""


def inputs(dtype=torch.float32, batch=3, queries=5, heads=2):
    """Value, shapes, locations and weights."""
    points = (batch, queries, heads, len(SIZES), 4)
    value = torch.randn(batch, 49, heads, 8)
    locations = torch.rand(*points, 2) * 1.2 - 0.1
    weights = torch.rand(points).flatten(3).softmax(-1).view(points)
    value, locations, weights = (tensor.to(dtype).requires_grad_() for tensor in (value, locations, weights))
    return value, torch.tensor(SIZES), locations, weights


def expected(value, locations, weights, grad_out):
    """The result, heads in one dimension, and the gradients of the three."""
    out = eager_deformable_attention(value, SIZES, locations, weights).flatten(2)
    return out, torch.autograd.grad(out, (value, locations, weights), grad_out)


@pytest.fixture
def function_of_the_original(monkeypatch):
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", ms_deform_attn)
    names = {}
    exec(FUNCTION_FILE, names)
    return names["MSDeformAttnFunction"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["core", "function", "original"])
def test_agrees(kind, batch, function_of_the_original):
    """No batch but 3 is divided by 2: im2col_step has no say."""
    value, shapes, locations, weights = inputs(batch=batch)
    out = {
        "core": lambda: ms_deform_attn.ms_deform_attn_core(value, shapes, locations, weights),
        "function": lambda: ms_deform_attn.MSDeformAttnFunction.apply(
            value, shapes, LEVEL_START, locations, weights, 2
        ),
        "original": lambda: function_of_the_original.apply(value, shapes, LEVEL_START, locations, weights, 2),
    }[kind]()
    assert out.shape == (batch, 5, 16)
    grad_out = torch.randn_like(out)
    actual = out, torch.autograd.grad(out, (value, locations, weights), grad_out)
    torch.testing.assert_close(actual, expected(value, locations, weights, grad_out), rtol=1e-5, atol=1e-5)


def test_original_twice_in_a_row(function_of_the_original):
    """A gradient that is made of leaves of its own leaves the caller's graph alone."""
    value, shapes, locations, weights = inputs()
    hidden = function_of_the_original.apply(value * 2, shapes, LEVEL_START, locations, weights, 64)
    out = function_of_the_original.apply(hidden.new_ones(3, 49, 2, 8), shapes, LEVEL_START, locations, weights, 64)
    (hidden.sum() + out.sum()).backward()
    assert value.grad.isfinite().all() and weights.grad.isfinite().all()
    torch.testing.assert_close(
        value.grad, 2 * expected(value, locations, weights, torch.ones(3, 5, 16))[1][0], rtol=1e-5, atol=1e-5
    )


def test_backward_in_inference_mode():
    value, shapes, locations, weights = inputs()
    grad_out = torch.randn(3, 5, 16)
    _, grads = expected(value, locations, weights, grad_out)
    with torch.inference_mode():
        copies = [tensor.clone() for tensor in (value, locations, weights)]
        given = (copies[0], shapes, LEVEL_START, *copies[1:])
        actual = ms_deform_attn.ms_deform_attn_backward(*given, grad_out.clone())
    torch.testing.assert_close(actual, list(grads), rtol=1e-4, atol=1e-4)


def test_forward_has_no_gradient():
    value, shapes, locations, weights = inputs()
    starts = LEVEL_START.int()  # beside shapes of 64 bits
    assert not ms_deform_attn.ms_deform_attn_forward(value, shapes, starts, locations, weights).requires_grad


def test_names_of_other_repositories():
    """mmcv's and GroundingDINO's."""
    assert ms_deform_attn.MultiScaleDeformableAttnFunction is ms_deform_attn.MSDeformAttnFunction
    assert ms_deform_attn.multi_scale_deformable_attn_pytorch is ms_deform_attn.ms_deform_attn_core
    assert ms_deform_attn.ms_deform_attn_core_pytorch is ms_deform_attn.ms_deform_attn_core


def test_import_from_a_package(tmp_path, monkeypatch):
    """GroundingDINO says `from groundingdino import _C` where no _C was built."""
    (tmp_path / "groundingdino_for_test").mkdir()
    (tmp_path / "groundingdino_for_test" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "groundingdino_for_test._C", ms_deform_attn)
    names = {}
    exec("from groundingdino_for_test import _C", names)
    assert names["_C"] is ms_deform_attn


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype):
    """Where the original is not implemented; locations in float32, weights in what the softmax gave."""
    value, _, locations, weights = inputs()
    half = value.detach().to(dtype)
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    out = ms_deform_attn.ms_deform_attn_core(half, SIZES, locations, weights)
    assert out.dtype == dtype
    exact = eager_deformable_attention(half.double(), SIZES, locations.double(), weights.double()).flatten(2)
    assert (out - exact).norm() < torch.finfo(dtype).eps * exact.norm()
    assert ms_deform_attn.ms_deform_attn_core(half, SIZES, locations, weights.to(other)).dtype == dtype
    assert ms_deform_attn.ms_deform_attn_core(value, SIZES, locations, weights.to(other)).dtype == torch.float32


def test_levels_that_do_not_follow_one_another():
    value, shapes, locations, weights = inputs()
    apply = ms_deform_attn.MSDeformAttnFunction.apply
    with pytest.raises(ValueError, match=r"value_level_start_index: expected \[0, 35, 47\].*got \[14, 2, 0\]"):
        apply(value, shapes, torch.tensor([14, 2, 0]), locations, weights, 64)
    with pytest.raises(ValueError, match=r"value_level_start_index: expected \(L,\) = \(3,\), got \(2,\)"):
        apply(value, shapes, torch.tensor([0, 35]), locations, weights, 64)
    with pytest.raises(ValueError, match=r"spatial_shapes: expected \(L, 2\)"):
        apply(value, shapes.flatten(), LEVEL_START, locations, weights, 64)
    apply(value, SIZES, None, locations, weights)  # nothing to read
