"""Every Triton kernel compiles for GPUs that need not be there, without spilling and within shared memory.

The launchers run on meta tensors with a driver that only names its target, so each kernel is specialized exactly as
a real call would specialize it. This file is also the program that does so: the rest of the suite interprets its
kernels, and a process either interprets or compiles.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

# Bytes one block may have. sm_80 tiles must also suit the smaller sm_86 and sm_89, which run the same kernels.
SHARED_MEMORY = {80: 99 * 1024, 90: 227 * 1024}
WORKERS = 2


@dataclass(frozen=True)
class Case:
    """Forward and backward of one op for one kind of GPU; `head_dim` 0 stands for the depthwise op on 64 channels."""

    capability: int
    height: int
    width: int
    head_dim: int
    dtype: str
    kernel_size: int = 0
    dense: bool = False

    def __str__(self):
        op = f"mix{self.head_dim}" if self.head_dim else "depthwise"
        local = f"-{self.kernel_size}x{self.kernel_size}" if self.kernel_size else ""
        dense = "-dense" if self.dense else ""
        return f"sm{self.capability}-{op}-{self.height}x{self.width}-{self.dtype}{local}{dense}"


@dataclass(frozen=True)
class ProductCase:
    """The MLP and the projection, forward and backward; `full`: with sample_scale and, where it fits, a residual."""

    capability: int
    channels: int
    hidden: int
    out_channels: int
    dtype: str
    full: bool = True
    tf32: bool = False

    def __str__(self):
        sizes = f"{self.channels}-{self.hidden}-{self.out_channels}"
        bare = "" if self.full else "-bare"
        return f"sm{self.capability}-mlp-{sizes}-{'tf32' if self.tf32 else self.dtype}{bare}"

    @property
    def aligned(self) -> bool:
        """Whether Triton can see that every row of every matrix starts at a multiple of 16 bytes."""
        return all(size % 16 == 0 for size in (self.channels, self.hidden, self.out_channels))


@dataclass(frozen=True)
class NormCase:
    """What a batch norm is made of: folded into a layer of twice as many channels, tracked, its sums differentiated."""

    capability: int
    channels: int
    dtype: str

    def __str__(self):
        return f"sm{self.capability}-norm-{self.channels}-{self.dtype}"


# One case for each branch: whole rows and tiles, each accumulator width, padding, both static terms; and the columns of
# DeiT-S and CONTAINER-PAM.
BRANCHES = [
    case
    for capability in SHARED_MEMORY
    for case in (
        Case(capability, 7, 7, 32, "bfloat16", 5),
        Case(capability, 14, 14, 32, "bfloat16", 5, dense=True),
        Case(capability, 28, 28, 64, "float16", 3),
        Case(capability, 7, 7, 32, "float32", 5),
        Case(capability, 56, 56, 0, "bfloat16", 5),
        Case(capability, 197, 1, 64, "bfloat16"),
        Case(capability, 197, 1, 64, "bfloat16", dense=True),
    )
] + [
    Case(80, 3, 3, 20, "float16", 3),
    Case(90, 20, 20, 256, "bfloat16"),
    Case(80, 14, 14, 0, "float32", 7),
]
SWEEP = [
    case
    for capability in SHARED_MEMORY
    for dtype in ("bfloat16", "float16", "float32")
    for case in [
        Case(capability, side, side, head_dim, dtype, kernel_size, dense)
        for side in (3, 5, 7, 10, 14, 28)
        for head_dim in (32, 64, 128, 256)
        for kernel_size, dense in ((0, False), (5, True))
    ]
    + [Case(capability, 14, 14, 0, dtype, kernel_size) for kernel_size in (1, 3, 5, 7)]
    if case not in BRANCHES
]

# The stages of the networks.
STAGES = [(64, 512, 64), (128, 1024, 128), (320, 1280, 320), (512, 2048, 512)]
# MLP-Mixer's tokens in the place of channels.
TOKENS = (196, 384, 196)
# Padding, of channels and of tiles, on chip and in memory; other widths out than in; rows that are not aligned.
UNEVEN = [
    (20, 70, 33),
    (100, 70, 97),
    (7, 9, 5),
    (48, 96, 100),
    (16, 64, 16),
    (32, 256, 32),
    (96, 1000, 64),
    (130, 70, 200),
    (256, 64, 32),
]
PRODUCT_BRANCHES = [
    case
    for capability in SHARED_MEMORY
    for case in (
        ProductCase(capability, *STAGES[0], "bfloat16"),
        ProductCase(capability, *STAGES[1], "float16", full=False),
        ProductCase(capability, *STAGES[2], "bfloat16"),
        ProductCase(capability, *STAGES[0], "float32"),
        ProductCase(capability, *STAGES[2], "float32", full=False, tf32=True),
        ProductCase(capability, *UNEVEN[0], "float16"),
        ProductCase(capability, *TOKENS, "bfloat16", full=False),
    )
]
PRODUCT_SWEEP = [
    case
    for capability in SHARED_MEMORY
    for sizes in [*STAGES, TOKENS, *UNEVEN]
    for full in (True, False)
    for case in (
        *(ProductCase(capability, *sizes, dtype, full) for dtype in ("bfloat16", "float16", "float32")),
        ProductCase(capability, *sizes, "float32", full, tf32=True),
    )
    if case not in PRODUCT_BRANCHES
]


NORMS = [
    NormCase(capability, channels, dtype)
    for capability in SHARED_MEMORY
    for channels, dtype in ((64, "bfloat16"), (320, "float32"), (37, "float16"))
]


@pytest.fixture(scope="module")
def kernels(request):
    """The facts of every kernel, by case, of the cases that this run selected."""
    items = [item for item in request.session.items if item.path == Path(__file__) and hasattr(item, "callspec")]
    cases = [item.callspec.params["case"] for item in items if "case" in item.callspec.params]
    with ThreadPoolExecutor(WORKERS) as pool:
        chunks = [cases[worker::WORKERS] for worker in range(WORKERS)]
        return {case: facts for chunk in pool.map(compile_elsewhere, chunks) for case, facts in chunk.items()}


@pytest.mark.parametrize("case", [*BRANCHES, *(pytest.param(case, marks=pytest.mark.slow) for case in SWEEP)], ids=str)
def test_kernels_fit_the_device(case, kernels):
    facts = kernels[case]
    assert len(facts) >= 2, "forward and backward were compiled"
    for kernel in facts:
        assert kernel["stack"] == 0, f"spills to the stack: {kernel}"
        assert kernel["shared"] <= SHARED_MEMORY[case.capability], kernel
        if case.head_dim:
            assert kernel["tensor_cores"] == (case.dtype != "float32"), kernel
            if case.head_dim % 16 == 0:
                assert kernel["wide_loads"], f"no 128-bit loads: {kernel}"
        else:
            assert not kernel["narrow_loads"], f"less than two channels a load: {kernel}"


@pytest.mark.parametrize(
    "case",
    [*PRODUCT_BRANCHES, *(pytest.param(case, marks=pytest.mark.slow) for case in PRODUCT_SWEEP)],
    ids=str,
)
def test_product_kernels_fit_the_device(case, kernels):
    facts = kernels[case]
    on_chip = {"forward_kernel", "backward_input_kernel", "backward_weight_kernel"}
    in_memory = {"forward_kernel", "hidden_kernel", "hidden_gradient_kernel"}
    assert {kernel["kernel"] for kernel in facts} in (on_chip, in_memory)
    assert len(facts) == 5, "three of the MLP, two of the projection"
    for kernel in facts:
        assert kernel["stack"] == 0, f"spills to the stack: {kernel}"
        assert kernel["shared"] <= SHARED_MEMORY[case.capability], kernel
        assert kernel["tensor_cores"] == (case.dtype != "float32" or case.tf32), kernel
        if case.aligned:
            assert kernel["wide_loads"], f"no 128-bit loads: {kernel}"


@pytest.mark.parametrize("case", NORMS, ids=str)
def test_norm_kernels_fit_the_device(case, kernels):
    facts = kernels[case]
    assert [kernel["kernel"] for kernel in facts] == [
        "forward_kernel", "forward_kernel", "backward_kernel", "track_kernel", "gradient_kernel"
    ]  # fmt: skip
    for kernel in facts:
        assert kernel["stack"] == 0, f"spills to the stack: {kernel}"
        assert kernel["shared"] <= SHARED_MEMORY[case.capability], kernel
    if case.channels % 8 == 0:
        assert facts[-1]["wide_loads"], f"no 128-bit loads: {facts[-1]}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tiles_cover_every_problem(dtype):
    from container_kernels.ops.context_aggregation.triton import config

    for n in [*range(1, 300), 4200]:
        for head_dim in (1, 16, 17, 33, 64, 100, 129, 256):
            forward = config.forward_config(n, head_dim, dtype)
            backward = config.backward_config(n, head_dim, dtype)
            assert not forward.whole_row or forward.block_n >= n
            assert backward.row is None or backward.row.block_n >= n
            launches = [forward, backward.row] if backward.row else [forward, backward.query, backward.key]
            for launch in launches:
                assert min(launch.block_m, launch.block_n) >= 16, launch
                for size in (launch.block_m, launch.block_n, launch.num_warps):
                    assert size & (size - 1) == 0, launch


def compile_elsewhere(cases: list[Case | ProductCase | NormCase]) -> dict[Case | ProductCase | NormCase, list[dict]]:
    """Run this file as a program in a process that compiles instead of interpreting."""
    if not cases:
        return {}
    run = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([(type(case).__name__, asdict(case)) for case in cases]),
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return dict(zip(cases, json.loads(run.stdout.splitlines()[-1]), strict=True))


class OfflineDriver:
    """As much of a Triton driver as compiling asks for; the capability doubles as the device's number."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def compile_case(case: Case | ProductCase | NormCase) -> list[dict]:
    """Launch the case's op on meta tensors, compiling only, and describe the kernels it would have run."""
    compiled = []
    run = triton.runtime.jit.JITFunction.run

    def compile_only(self, *args, warmup, **kwargs):
        compiled.append((self.__name__, run(self, *args, warmup=True, **kwargs)))

    triton.runtime.driver.set_active(OfflineDriver(case.capability))
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
        if isinstance(case, ProductCase):
            launch_products(case)
        elif isinstance(case, NormCase):
            launch_norm(case)
        else:
            launch_mix(case) if case.head_dim else launch_depthwise(case)
    return [describe(name, kernel) for name, kernel in compiled]


def launch_mix(case: Case) -> None:
    """Forward and backward on slices of a packed projection and of its gradient, batch 4 and 4 heads."""
    from container_kernels.ops.context_aggregation import triton as backend

    n, heads, dim = case.height * case.width, 4, case.head_dim
    dtype = getattr(torch, case.dtype)
    (q, k, v), (grad_q, grad_k, grad_v) = (t.unbind(2) for t in torch.empty(2, 4, n, 3, heads, dim, dtype=dtype))
    out, grad_out = torch.empty(2, 4, n, heads, dim, dtype=dtype)
    alpha, grad_alpha = torch.empty(2, heads)
    logsumexp = torch.empty(4, heads, n)
    weight = bias = None
    grid = (0, 0)
    if case.kernel_size:
        weight, bias = torch.empty(heads * dim, case.kernel_size, case.kernel_size), torch.empty(heads * dim)
        grid = (case.height, case.width)
    affinity = torch.empty(heads, n, n) if case.dense else None
    backend.forward(q, k, v, alpha, weight, bias, affinity, *grid, 0.2, out=out, logsumexp=logsumexp)
    grads = {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v, "grad_alpha": grad_alpha}
    backend.backward(grad_out, q, k, v, alpha, weight, affinity, logsumexp, *grid, 0.2, **grads)


def launch_depthwise(case: Case) -> None:
    """Forward, without and with statistics, and weight gradient of a batch of 32 images."""
    from container_kernels.ops.local_aggregation import triton as backend

    shape = (32, case.height, case.width, 64)
    x, out = torch.empty(2, *shape, dtype=getattr(torch, case.dtype))
    weight, bias = torch.empty(64, case.kernel_size, case.kernel_size), torch.empty(64)
    backend.forward(x, weight, bias, out=out)
    backend.forward_with_statistics(x, weight, bias, out=out, channel_sum=bias, channel_square_sum=bias)
    backend.backward_weight(out, x, grad_weight=weight, grad_bias=bias)


def launch_products(case: ProductCase) -> None:
    """The MLP, forward and backward, then the projection, without and with statistics, of 32 samples of 49 tokens."""
    from container_kernels.ops.fused_mlp import triton as mlp
    from container_kernels.ops.projection import triton as projection

    torch.backends.cuda.matmul.fp32_precision = "tf32" if case.tf32 else "ieee"
    channels, hidden, out_channels, dtype = case.channels, case.hidden, case.out_channels, getattr(torch, case.dtype)
    x, grad_x = torch.empty(2, 32, 49, channels, dtype=dtype)
    out, grad_out = torch.empty(2, 32, 49, out_channels, dtype=dtype)
    w1, grad_w1 = torch.empty(2, hidden, channels, dtype=dtype)
    w2, grad_w2 = torch.empty(2, out_channels, hidden, dtype=dtype)
    b1, grad_b1 = torch.empty(2, hidden)
    b2, grad_b2 = torch.empty(2, out_channels)
    scale = torch.empty(32) if case.full else None
    residual = case.full and channels == out_channels
    mlp.forward(x, w1, b1, w2, b2, scale, residual, out=out)
    grads = {"grad_x": grad_x, "grad_w1": grad_w1, "grad_b1": grad_b1, "grad_w2": grad_w2, "grad_b2": grad_b2}
    mlp.backward(grad_out, x, w1, b1, w2, scale, residual, **grads)
    arguments = (x, torch.empty(out_channels, channels, dtype=dtype), b2, grad_out if case.full else None, scale)
    projection.forward(*arguments, out=out)
    projection.forward_with_statistics(*arguments, out=out, channel_sum=b2, channel_square_sum=grad_b2)


def launch_norm(case: NormCase) -> None:
    """Folding by statistics and by mean and variance, its gradient, tracking, the gradient of the sums."""
    from container_kernels.ops.fold_norm import triton as folding
    from container_kernels.ops.statistics import triton as statistics

    channels, rows, dtype = case.channels, 2 * case.channels, getattr(torch, case.dtype)
    first, second, gamma, beta, *grads = torch.empty(8, channels)
    weight, grad_weight = torch.empty(2, rows, channels)
    folded, (bias, shift) = torch.empty(rows, channels, dtype=dtype), torch.empty(2, rows)
    for count in (1568, 0):
        folding.forward(weight, bias, first, second, count, gamma, beta, 1e-5, folded=folded, shift=shift)
    names = ("grad_first", "grad_second", "grad_gamma", "grad_beta")
    outputs = dict(zip(names, grads, strict=True), grad_weight=grad_weight)
    folding.backward(folded, shift, weight, first, second, 1568, gamma, beta, 1e-5, **outputs)
    folding.track(gamma, beta, torch.empty((), dtype=torch.int64), first, second, 1568, 0.1)
    out, grad_out, total = torch.empty(3, 32, 49, channels, dtype=dtype)
    statistics.gradient(out, grad_out, first, second, total=total)


def describe(name: str, kernel) -> dict:
    """What ptxas and the PTX say about one kernel."""
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    ptx = kernel.asm["ptx"]
    return {
        "kernel": name,
        "registers": usage["REG"],
        "stack": usage["STACK"] + usage["LOCAL"],
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "tensor_cores": re.search(r"\bw?g?mma\S*\.sync", ptx) is not None,
        "wide_loads": re.search(r"ld\.global\S*\.v4|cp\.async\S* .*0x10", ptx) is not None,
        "narrow_loads": re.search(r"ld\.global\S*\.b16", ptx) is not None,
    }


if __name__ == "__main__":
    kinds = {kind.__name__: kind for kind in (Case, ProductCase, NormCase)}
    print(json.dumps([compile_case(kinds[name](**fields)) for name, fields in json.load(sys.stdin)]))
