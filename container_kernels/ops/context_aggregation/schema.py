# SPDX-License-Identifier: MIT
"""The operators behind context aggregation: definition, output allocation, one kernel and one fake for each backend.

    mix_fwd_<backend>(q, k, v, alpha, local_weight?, local_bias?, affinity?, height, width, scale) -> out, logsumexp
    mix_bwd_<backend>(grad_out, q, k, v, alpha, local_weight?, affinity?, logsumexp, height, width, scale)
        -> grad_q, grad_k, grad_v, grad_alpha

They compute alpha · softmax(scale q kᵀ) v + static(v) with beta already folded into the static parameters; those,
alpha (M,), logsumexp (B, M, N) and grad_alpha (M,) are in the accumulation dtype. q, k, v, out and their gradients
are (B, N, M, D).
"""

from importlib import import_module

from torch import Tensor

from ..backend import DEVICE_TYPES
from ..library import accumulation_dtype, define, new_empty, rows_contiguous


def _forward_outputs(v: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = v.shape
    logsumexp = new_empty(v, (batch, heads, tokens), accumulation_dtype(v.dtype))
    return new_empty(v, tuple(v.shape)), logsumexp


def _backward_outputs(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = tuple(v.shape)
    grad_alpha = new_empty(v, (shape[2],), accumulation_dtype(v.dtype))
    return new_empty(v, shape), new_empty(v, shape), new_empty(v, shape), grad_alpha


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _register(backend: str, device_types: tuple[str, ...]) -> None:
    def kernels():
        return import_module(f"{__package__}.{backend}")

    def forward(q, k, v, alpha, local_weight, local_bias, affinity, height, width, scale):
        out, logsumexp = _forward_outputs(v)
        if out.numel():
            static = (_contiguous(local_weight), _contiguous(local_bias), _contiguous(affinity))
            kernels().forward(
                *map(rows_contiguous, (q, k, v)), alpha.contiguous(), *static, height, width, scale,
                out=out, logsumexp=logsumexp,
            )  # fmt: skip
        return out, logsumexp

    def backward(grad_out, q, k, v, alpha, local_weight, affinity, logsumexp, height, width, scale):
        grad_q, grad_k, grad_v, grad_alpha = _backward_outputs(v)
        if v.numel():
            kernels().backward(
                *map(rows_contiguous, (grad_out, q, k, v)), alpha.contiguous(), _contiguous(local_weight),
                _contiguous(affinity), logsumexp.contiguous(), height, width, scale,
                grad_q=grad_q, grad_k=grad_k, grad_v=grad_v, grad_alpha=grad_alpha,
            )  # fmt: skip
        else:
            grad_alpha.zero_()
        return grad_q, grad_k, grad_v, grad_alpha

    define(
        f"mix_fwd_{backend}(Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor? local_weight, Tensor? local_bias, "
        "Tensor? affinity, SymInt height, SymInt width, float scale) -> (Tensor, Tensor)",
        forward,
        lambda q, k, v, *rest: _forward_outputs(v),
        device_types,
    )
    define(
        f"mix_bwd_{backend}(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor? local_weight, "
        "Tensor? affinity, Tensor logsumexp, SymInt height, SymInt width, float scale) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        backward,
        lambda grad_out, q, k, v, *rest: _backward_outputs(v),
        device_types,
    )


for _backend, _device_types in DEVICE_TYPES.items():
    _register(_backend, _device_types)
