# SPDX-License-Identifier: MIT
"""The operators behind context aggregation: definition, output allocation, one kernel and one fake for each backend.

    mix_fwd_<backend>(q, k, v, alpha, local_weight?, local_bias?, affinity?, height, width, scale) -> out, logsumexp
    mix_bwd_<backend>(grad_out, q, k, v, alpha, local_weight?, affinity?, logsumexp, height, width, scale)
        -> grad_q, grad_k, grad_v, grad_alpha
    mix_bwd_local_<backend>(grad_out, q, k, v, alpha, local_weight, logsumexp, height, width, scale)
        -> grad_q, grad_k, grad_v, grad_alpha, grad_local_weight, grad_local_bias

They compute alpha · softmax(scale q kᵀ) v + static(v) with beta already folded into the static parameters; those,
alpha (M,), logsumexp (B, M, N), grad_alpha (M,) and the gradients of the local term are in the accumulation dtype.
q, k, v, out and their gradients are (B, N, M, D). The last operator exists only where a kernel does it all in one
pass (`WITH_LOCAL_GRADIENT`); otherwise the local term's gradients are left to the operators of local aggregation.
"""

from importlib import import_module

from torch import Tensor

from ..backend import DEVICE_TYPES
from ..library import accumulation_dtype, define, new_empty, rows_contiguous

WITH_LOCAL_GRADIENT = ("cuda",)


def _forward_outputs(v: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = v.shape
    logsumexp = new_empty(v, (batch, heads, tokens), accumulation_dtype(v.dtype))
    return new_empty(v, tuple(v.shape)), logsumexp


def _backward_outputs(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = tuple(v.shape)
    grad_alpha = new_empty(v, (shape[2],), accumulation_dtype(v.dtype))
    return new_empty(v, shape), new_empty(v, shape), new_empty(v, shape), grad_alpha


def _backward_local_outputs(v: Tensor, local_weight: Tensor) -> tuple[Tensor, ...]:
    grad_local_weight = new_empty(v, tuple(local_weight.shape), accumulation_dtype(v.dtype))
    grad_local_bias = new_empty(v, tuple(local_weight.shape[:1]), accumulation_dtype(v.dtype))
    return *_backward_outputs(v), grad_local_weight, grad_local_bias


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


def _register_with_local_gradient(backend: str, device_types: tuple[str, ...]) -> None:
    def backward_local(grad_out, q, k, v, alpha, local_weight, logsumexp, height, width, scale):
        outputs = _backward_local_outputs(v, local_weight)
        grad_q, grad_k, grad_v, grad_alpha, grad_local_weight, grad_local_bias = outputs
        if v.numel():
            import_module(f"{__package__}.{backend}").backward_local(
                *map(rows_contiguous, (grad_out, q, k, v)), alpha.contiguous(), local_weight.contiguous(),
                logsumexp.contiguous(), height, width, scale,
                grad_q=grad_q, grad_k=grad_k, grad_v=grad_v, grad_alpha=grad_alpha,
                grad_local_weight=grad_local_weight, grad_local_bias=grad_local_bias,
            )  # fmt: skip
        else:
            for grad in outputs[3:]:
                grad.zero_()
        return outputs

    define(
        f"mix_bwd_local_{backend}(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor local_weight, "
        "Tensor logsumexp, SymInt height, SymInt width, float scale) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        backward_local,
        lambda grad_out, q, k, v, alpha, local_weight, *rest: _backward_local_outputs(v, local_weight),
        device_types,
    )


for _backend, _device_types in DEVICE_TYPES.items():
    _register(_backend, _device_types)
for _backend in WITH_LOCAL_GRADIENT:
    _register_with_local_gradient(_backend, DEVICE_TYPES[_backend])
