"""Triton's float32 products on tensor cores (TF32), where torch allows them: within what operands of 10 bits explain.

The interpreter multiplies float32 as it is: without a GPU the code paths run, and stay within the same budget.
"""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from backends import DEVICES
from context_aggregation_cases import gradient_of, summed_by_mixing_weights

from container_kernels import context_aggregation, fused_mlp, projection
from container_kernels.testing import MixCase, assert_within_budget, poisoned_outputs

DEVICE = DEVICES["triton"]
BACKENDS = pytest.mark.parametrize("backend", ["triton"])


def on_a_gpu(*values):
    return [pytest.param(value, marks=pytest.mark.gpu) for value in values]


PRECISIONS = pytest.mark.parametrize("precision", ["tf32", *on_a_gpu("ieee")])
# One tile of keys, several, a head as wide as a tile; the window is no product.
MIX_CASES = [
    MixCase(batch=1, height=7, width=7, heads=2, head_dim=32, kernel=(3, 3)),
    *on_a_gpu(
        MixCase(batch=2, height=20, width=21, heads=2, head_dim=32),
        MixCase(batch=1, height=14, width=14, heads=1, head_dim=128, kernel=(3, 3)),
    ),
]
# Tokens, channels, hidden channels: the hidden layer on chip, and kept in memory.
MLP_SHAPES = [(20, 64, 128), (20, 320, 128), *on_a_gpu((400, 64, 512), (260, 320, 640))]
# Tokens, channels in and out.
PROJECTION_SHAPES = [(20, 64, 48), *on_a_gpu((400, 64, 64), (260, 320, 200))]
# How much coarser 10 bits are than float32's 23.
COARSER = 2**13


@contextmanager
def multiplied_in(precision):
    """What torch allows for float32 products on a GPU. (monkeypatch cannot put this attribute back.)"""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def ten_bits(x):
    """x as a tensor core reads it: of float32's 23 bits after the point the first 10."""
    return (x.float().contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32).double()


class Product(torch.autograd.Function):
    """a @ b of operands of 10 bits, summed exactly; the two products of its backward alike."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return ten_bits(a) @ ten_bits(b)

    @staticmethod
    def backward(ctx, grad):
        a, b = map(ten_bits, ctx.saved_tensors)
        grad = ten_bits(grad)
        return grad @ b.mT, (a.flatten(0, -2).mT @ grad.flatten(0, -2)) if b.dim() == 2 else a.mT @ grad


def mix_of_products(product, q, k, v, *, alpha, beta, local_weight, local_bias, grid_size, scale):
    queries, keys, values = (t.transpose(1, 2) for t in (q, k, v))
    attention = product((scale * product(queries, keys.mT)).softmax(-1), values)
    image = v.flatten(2).transpose(1, 2).unflatten(2, grid_size)
    padding = [size // 2 for size in local_weight.shape[1:]]
    local = F.conv2d(image, local_weight[:, None], local_bias, padding=padding, groups=image.shape[1])
    local = local.flatten(2).unflatten(1, v.shape[2:]).transpose(2, 3)
    return (alpha[:, None, None] * attention + beta[:, None, None] * local).transpose(1, 2)


def mlp_of_products(product, x, w1, b1, w2, b2):
    return x + product(F.gelu(product(x, w1.mT) + b1), w2.mT) + b2


def projection_of_products(product, x, weight, bias):
    return product(x, weight.mT) + bias


def random_leaves(**shapes):
    """float32 leaves by name; matrices keep the size of what they multiply."""
    return {
        name: (torch.randn(shape) * (shape[-1] ** -0.5 if name.startswith("w") else 1)).to(DEVICE).requires_grad_()
        for name, shape in shapes.items()
    }


def results(function, leaves):
    """The output and gradients of its product with fixed random numbers, by the leaves' names."""
    out = function(leaves)
    grads = torch.autograd.grad(out, list(leaves.values()), gradient_of(out))
    return {"out": out, **dict(zip(leaves, grads, strict=True))}


def check(precision, ours, in_products, leaves, summed=None):
    """Hold ours to twice the error of PyTorch in float32 and of products of 10-bit operands together.

    Args:
        ours: of the leaves.
        in_products: the same of a function that multiplies, and leaves.
        summed: for results of one or a few sums their terms, each of which may be off by a rounding to 10 bits.

    Returns:
        The output's largest error relative to its largest element.
    """
    with multiplied_in(precision), poisoned_outputs():
        actual = results(ours, leaves)
    wide = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    exact = results(lambda leaves: in_products(torch.matmul, leaves), wide)
    rounded = results(lambda leaves: in_products(Product.apply, leaves), wide)
    with multiplied_in("ieee"):
        plain = results(lambda leaves: in_products(torch.matmul, leaves), leaves)
    for name, judge in exact.items():
        explained = judge + (plain[name].double() - judge).abs() + (rounded[name] - judge).abs()
        terms = (summed or {}).get(name)
        terms = None if terms is None else COARSER * terms
        assert_within_budget(name, actual[name], explained, judge, summed=terms)
    return ((actual["out"] - exact["out"]).abs().max() / exact["out"].abs().max()).item()


def assert_multiplied_in(precision, error):
    """On a GPU the error tells which it was: TF32 keeps 10 bits, float32 23."""
    if DEVICE == "cuda":
        assert error > 1e-5 if precision == "tf32" else error < 1e-5


@BACKENDS
@PRECISIONS
@pytest.mark.parametrize("case", MIX_CASES, ids=str)
def test_mix(backend, case, precision):
    inputs = case.make(torch.float32, DEVICE, grad=True)

    def named(leaves):
        arguments = {name: leaf for name, leaf in leaves.items() if name != "packed"}
        return leaves["packed"].unbind(2), {**arguments, "grid_size": inputs.grid_size, "scale": inputs.scale}

    def ours(leaves):
        qkv, arguments = named(leaves)
        return context_aggregation(*qkv, **arguments, backend=backend)

    def in_products(product, leaves):
        qkv, arguments = named(leaves)
        return mix_of_products(product, *qkv, **arguments)

    wide = inputs.double()
    terms = summed_by_mixing_weights(wide, in_products(torch.matmul, wide.leaves))
    assert_multiplied_in(precision, check(precision, ours, in_products, inputs.leaves, terms))


@BACKENDS
@PRECISIONS
@pytest.mark.parametrize("shape", MLP_SHAPES, ids=str)
def test_mlp(backend, shape, precision):
    tokens, channels, hidden = shape
    shapes = {"x": (2, tokens, channels), "w1": (hidden, channels), "b1": (hidden,)}
    leaves = random_leaves(**shapes, w2=(channels, hidden), b2=(channels,))

    def in_products(product, leaves):
        return mlp_of_products(product, **leaves)

    def ours(leaves):
        return fused_mlp(**leaves, residual=True, backend=backend)

    assert_multiplied_in(precision, check(precision, ours, in_products, leaves))


@BACKENDS
@PRECISIONS
@pytest.mark.parametrize("shape", PROJECTION_SHAPES, ids=str)
def test_projection(backend, shape, precision):
    tokens, channels, out_channels = shape
    leaves = random_leaves(x=(2, tokens, channels), weight=(out_channels, channels), bias=(out_channels,))

    def in_products(product, leaves):
        return projection_of_products(product, **leaves)

    def ours(leaves):
        return projection(**leaves, backend=backend)

    assert_multiplied_in(precision, check(precision, ours, in_products, leaves))


@pytest.mark.parametrize(("dtype", "within"), [(torch.bfloat16, False), (torch.float16, True)], ids=str)
def test_the_budget_is_that_of_ten_bits(dtype, within):
    """Operands of bfloat16's 7 bits are found; those of float16's 10, which are rounded and not cut, pass."""
    leaves = random_leaves(x=(2, 100, 64), weight=(48, 64), bias=(48,))

    def in_products(product, leaves):
        return projection_of_products(product, **leaves)

    def narrow(a, b):
        return a.to(dtype).float() @ b.to(dtype).float()

    def ours(leaves):
        return in_products(narrow, leaves)

    if within:
        check("ieee", ours, in_products, leaves)
    else:
        with pytest.raises(AssertionError, match="over the budget"):
            check("ieee", ours, in_products, leaves)
