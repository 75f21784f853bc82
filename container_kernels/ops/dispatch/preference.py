# SPDX-License-Identifier: MIT
"""In which order the automatic choice tries the backends: one table, each row with its reason.

The first row that fits a call counts; of its backends the first that can serve is taken, in the end "reference". The
interpreter ("triton" on CPU tensors) and the CUDA kernels on CPU tensors are for tests: only used when asked for.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)


class Row(NamedTuple):
    device_type: str
    # None: any op.
    ops: tuple[str, ...] | None
    order: tuple[str, ...]
    because: str
    # Of the mix: dtypes and the most tokens it holds for; None: any.
    dtypes: tuple[torch.dtype, ...] | None = None
    max_tokens: int | None = None
    # Where torch multiplies float32 on tensor cores; None: either way.
    tf32: bool | None = None

    @property
    def condition(self) -> str:
        """The calls that the row holds for, in words."""
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes or ())
        dtypes += " as TF32" if self.tf32 else ""
        tokens = f"N <= {self.max_tokens}" if self.max_tokens else ""
        return "; ".join(filter(None, [f"{', '.join(self.ops or ('any op',))} on {self.device_type}", dtypes, tokens]))


ROWS = (
    Row(
        "cuda",
        ("local_aggregation",),
        ("cuda", "triton"),
        "prediction: bound by memory; a row that is read once and slides through registers beats k² taps from L1",
    ),
    Row(
        "cuda",
        ("context_aggregation",),
        ("cuda", "triton"),
        "prediction: a block reads q, k, v once and takes the local term from shared memory, not k² times from cache",
        dtypes=_HALF,
        max_tokens=256,
    ),
    Row(
        "cuda",
        ("context_aggregation",),
        ("triton", "cuda"),
        "prediction: rows this long fill a multiprocessor with one block; tiles of keys leave room for several",
        dtypes=_HALF,
    ),
    Row(
        "cuda",
        ("context_aggregation",),
        ("triton", "cuda"),
        "prediction: bound by multiplications, which TF32, where torch allows it, puts on tensor cores in triton only",
        dtypes=(torch.float32,),
    ),
    Row(
        "cuda",
        ("fused_mlp", "projection"),
        ("triton",),
        "prediction: no pass for residual and statistics; the hidden layer stays on chip, or at least is not kept",
        dtypes=_HALF,
    ),
    Row(
        "cuda",
        ("fused_mlp", "projection"),
        ("triton",),
        "prediction: the same, where float32 has tensor cores",
        dtypes=(torch.float32,),
        tf32=True,
    ),
    Row(
        "cuda",
        ("fused_mlp", "projection"),
        ("reference",),
        "prediction: without tensor cores cuBLAS multiplies best",
        dtypes=(torch.float32,),
    ),
    Row(
        "cuda",
        ("deformable_attention",),
        ("cuda", "triton"),
        "prediction: bound by reads from L2, alike in both; plain sums are less work than products, mostly with zeros",
    ),
    Row("cuda", ("fold_norm",), ("triton",), "prediction: one launch instead of a dozen on small tensors"),
    Row(
        "cuda", ("statistics",), ("triton",), "prediction: one pass over three tensors instead of three over wider ones"
    ),
    Row("cpu", None, ("cpu",), "measured: bench/results"),
)


def order(op: str, tensor: Tensor) -> tuple[str, ...]:
    """The backends to try for `op` on `tensor`: v (B, N, M, D) of the mix, else x (B, …, C)."""
    for row in ROWS:
        if (
            row.device_type == tensor.device.type
            and (row.ops is None or op in row.ops)
            and (row.dtypes is None or tensor.dtype in row.dtypes)
            and (row.max_tokens is None or tensor.shape[1] <= row.max_tokens)
            and (row.tf32 is None or row.tf32 == _allows_tf32())
        ):
            return row.order
    return ()


@torch.compiler.assume_constant_result
def _allows_tf32() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"
