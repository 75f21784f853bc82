# SPDX-License-Identifier: MIT
"""The operators behind context aggregation: definition, output allocation, one kernel and one fake for each backend.

    mix_fwd_<backend>(q, k, v, alpha, local_weight?, local_bias?, affinity?, height, width, scale) -> out, logsumexp
    mix_bwd_<backend>(grad_out, q, k, v, alpha, local_weight?, affinity?, logsumexp, height, width, scale)
        -> grad_q, grad_k, grad_v, grad_alpha
    mix_bwd_local_<backend>(grad_out, q, k, v, alpha, local_weight, logsumexp, height, width, scale)
        -> grad_q, grad_k, grad_v, grad_alpha, grad_local_weight, grad_local_bias

They compute alpha · softmax(scale q kᵀ) v + static(v) with beta already folded into the static parameters; those,
alpha (M,), logsumexp (B, M, N), grad_alpha (M,) and the gradients of the local term are in the accumulation dtype.
q, k, v, out and their gradients are (B, N, M, D). logsumexp has the base in which the backend's exponentials are: a log
of the sum below the rounding of the largest score then leaves that score as it is.

The last operator exists only where a kernel does it all in one pass (`WITH_LOCAL_GRADIENT`); otherwise the local term's
gradients are left to the operators of local aggregation.

Each has a twin `…_packed_<backend>` that takes one packed projection (B, N, 3, M, D) for q, k, v and gives one packed
gradient: the three slices, written in place, need not be glued together for the projection's backward.
"""

from importlib import import_module

from torch import Tensor

from ..backend import DEVICE_TYPES
from ..library import accumulation_dtype, contiguous, define, new_empty, rows_contiguous

WITH_LOCAL_GRADIENT = ("cuda",)


def _forward_outputs(v: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = v.shape
    logsumexp = new_empty(v, (batch, heads, tokens), accumulation_dtype(v.dtype))
    return new_empty(v, tuple(v.shape)), logsumexp


def _backward_outputs(qkv: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of `qkv`, which is (q, k, v) or one packed projection alone, and of alpha."""
    heads, dtype = qkv[-1].shape[-2], accumulation_dtype(qkv[-1].dtype)
    return *(new_empty(t, tuple(t.shape)) for t in qkv), new_empty(qkv[-1], (heads,), dtype)


def _backward_local_outputs(qkv: tuple[Tensor, ...], local_weight: Tensor) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(qkv[-1].dtype)
    grad_local_weight = new_empty(qkv[-1], tuple(local_weight.shape), dtype)
    grad_local_bias = new_empty(qkv[-1], tuple(local_weight.shape[:1]), dtype)
    return *_backward_outputs(qkv), grad_local_weight, grad_local_bias


def _slices(qkv: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """q, k and v of either form."""
    return qkv[0].unbind(2) if len(qkv) == 1 else qkv


def _register(backend: str, device_types: tuple[str, ...], packed: bool) -> None:
    name = f"packed_{backend}" if packed else backend
    inputs = "Tensor qkv" if packed else "Tensor q, Tensor k, Tensor v"
    grads = ", ".join(["Tensor"] * (2 if packed else 4))
    count = 1 if packed else 3

    def kernels():
        return import_module(f"{__package__}.{backend}")

    def forward(*arguments):
        qkv = _slices(arguments[:count])
        alpha, local_weight, local_bias, affinity, height, width, scale = arguments[count:]
        out, logsumexp = _forward_outputs(qkv[-1])
        if out.numel():
            static = (contiguous(local_weight), contiguous(local_bias), contiguous(affinity))
            kernels().forward(
                *map(rows_contiguous, qkv), alpha.contiguous(), *static, height, width, scale,
                out=out, logsumexp=logsumexp,
            )  # fmt: skip
        return out, logsumexp

    def backward(grad_out, *arguments):
        qkv = arguments[:count]
        alpha, local_weight, affinity, logsumexp, height, width, scale = arguments[count:]
        outputs = *grad_qkv, grad_alpha = _backward_outputs(qkv)
        if grad_out.numel():
            grad_q, grad_k, grad_v = _slices(grad_qkv)
            kernels().backward(
                *map(rows_contiguous, (grad_out, *_slices(qkv))), alpha.contiguous(), contiguous(local_weight),
                contiguous(affinity), logsumexp.contiguous(), height, width, scale,
                grad_q=grad_q, grad_k=grad_k, grad_v=grad_v, grad_alpha=grad_alpha,
            )  # fmt: skip
        else:
            grad_alpha.zero_()
        return outputs

    def backward_local(grad_out, *arguments):
        qkv = arguments[:count]
        alpha, local_weight, logsumexp, height, width, scale = arguments[count:]
        outputs = *grad_qkv, grad_alpha, grad_local_weight, grad_local_bias = _backward_local_outputs(qkv, local_weight)
        if grad_out.numel():
            grad_q, grad_k, grad_v = _slices(grad_qkv)
            kernels().backward_local(
                *map(rows_contiguous, (grad_out, *_slices(qkv))), alpha.contiguous(), local_weight.contiguous(),
                logsumexp.contiguous(), height, width, scale,
                grad_q=grad_q, grad_k=grad_k, grad_v=grad_v, grad_alpha=grad_alpha,
                grad_local_weight=grad_local_weight, grad_local_bias=grad_local_bias,
            )  # fmt: skip
        else:
            for grad in (grad_alpha, grad_local_weight, grad_local_bias):
                grad.zero_()
        return outputs

    define(
        f"mix_fwd_{name}({inputs}, Tensor alpha, Tensor? local_weight, Tensor? local_bias, Tensor? affinity, "
        "SymInt height, SymInt width, float scale) -> (Tensor, Tensor)",
        forward,
        lambda *arguments: _forward_outputs(_slices(arguments[:count])[-1]),
        device_types,
    )
    define(
        f"mix_bwd_{name}(Tensor grad_out, {inputs}, Tensor alpha, Tensor? local_weight, Tensor? affinity, "
        f"Tensor logsumexp, SymInt height, SymInt width, float scale) -> ({grads})",
        backward,
        lambda grad_out, *arguments: _backward_outputs(arguments[:count]),
        device_types,
    )
    if backend in WITH_LOCAL_GRADIENT:
        define(
            f"mix_bwd_local_{name}(Tensor grad_out, {inputs}, Tensor alpha, Tensor local_weight, Tensor logsumexp, "
            f"SymInt height, SymInt width, float scale) -> ({grads}, Tensor, Tensor)",
            backward_local,
            lambda grad_out, *arguments: _backward_local_outputs(arguments[:count], arguments[count + 1]),
            device_types,
        )


for _backend, _device_types in DEVICE_TYPES.items():
    for _packed in (False, True):
        _register(_backend, _device_types, _packed)
