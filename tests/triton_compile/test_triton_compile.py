"""Every Triton kernel compiles for GPUs that need not be there, without spilling and within shared memory.

In the suite one case per branch, and a random sample with each Triton; `-m slow` compiles all that a release is
held to.
"""

from collections.abc import Iterable, Sequence

import pytest
from compile_cases import SHARED_MEMORY, Case, DeformableCase, LocalAggregationCase, MixCase, NormCase, ProductCase
from compile_samples import CAPABILITIES, branches, exhaustive, random_cases
from triton_versions import INSTALLED, OTHERS, ROOT, compile_elsewhere

KERNELS_ON_CHIP = {"forward_kernel", "backward_input_kernel", "backward_weight_kernel"}
KERNELS_IN_MEMORY = {"forward_kernel", "hidden_kernel", "hidden_gradient_kernel"}
# Merges the statistics of any op, in float64: neither products nor wide rows.
MERGE = "merge_kernel"
OPS_IN_TRITON = {path.parent.name for path in (ROOT / "container_kernels" / "ops").glob("*/*") if path.stem == "triton"}
# For the ops that a sample does not have by chance.
ONE_PER_OP = (
    MixCase(90, "bfloat16", 14, 14, 32, window=(5, 5)),
    LocalAggregationCase(80, "bfloat16", 14, 14, 64, (5, 5)),
    ProductCase(90, "bfloat16", 64, 256, 64),
    NormCase(90, "bfloat16", 64),
    DeformableCase(90, "bfloat16", 32),
)
TRITONS = (INSTALLED, *OTHERS)
# Random cases per Triton; each has a seed of its own, so that a failure can be repeated.
SAMPLE = 8


def sample_of(triton: str) -> list[Case]:
    """Random cases on every GPU, other ones for each Triton, and a call of every op."""
    number = TRITONS.index(triton)
    drawn = random_cases(SAMPLE, seed=number, first_dtype=number)
    known = {op for case in drawn for op in case.ops}
    return [*drawn, *(case for case in ONE_PER_OP if not set(case.ops) <= known)]


def faults(case: Case, kernels: list[dict]) -> Iterable[str]:
    """What is wrong with the kernels of a case, in words."""
    yield from wrong_launches(case, [kernel["kernel"] for kernel in kernels])
    yield from wrong_gelus(case, kernels)
    for kernel in kernels:
        if "error" in kernel:
            yield f"does not compile: {kernel}"
            continue
        if kernel["stack"]:
            yield f"spills to the stack: {kernel}"
        if kernel["shared"] > SHARED_MEMORY[case.capability]:
            yield f"more shared memory than the GPU has: {kernel}"
        if kernel["kernel"] == MERGE:
            continue
        if isinstance(case, MixCase | ProductCase) and kernel["tensor_cores"] != case.has_products_on_tensor_cores:
            yield f"tensor cores where there should be none, or none: {kernel}"
        if isinstance(case, DeformableCase):
            yield from wrong_sampling(case, kernel)
        if isinstance(case, MixCase) and not kernel["wide_loads"]:
            yield f"no 128-bit loads: {kernel}"
        if isinstance(case, ProductCase) and case.aligned and not kernel["wide_loads"]:
            yield f"no 128-bit loads: {kernel}"
        if isinstance(case, LocalAggregationCase) and case.channels % 16 == 0 and kernel["narrow_loads"]:
            yield f"less than two channels a load: {kernel}"


def wrong_sampling(case: DeformableCase, kernel: dict) -> Iterable[str]:
    """Whether pixels are read 16 bytes at a time; the gradient of value alone is a product, in 16 bits or TF32."""
    products = kernel["kernel"] == "backward_value_kernel"
    if kernel["tensor_cores"] != (products and case.has_products_on_tensor_cores):
        yield f"tensor cores where there should be none, or none: {kernel}"
    if case.aligned and kernel["kernel"] != "boxes_kernel" and not kernel["wide_loads"]:
        yield f"no 128-bit loads: {kernel}"


def wrong_gelus(case: Case, kernels: list[dict]) -> Iterable[str]:
    """Whether GELU is by the hardware's tanh in the MLPs of 16-bit dtypes, and nowhere else."""
    wanted = isinstance(case, ProductCase) and case.dtype in ("bfloat16", "float16")
    if any(kernel.get("tanh") for kernel in kernels) != wanted:
        yield f"tanh by hardware: expected {wanted}, got {not wanted}"


def wrong_launches(case: Case, names: list[str]) -> Iterable[str]:
    """Whether forward and backward were compiled, all of it."""
    if isinstance(case, MixCase):
        right = names in (
            ["forward_row_kernel", "backward_row_kernel"],
            ["forward_row_kernel", "backward_query_kernel", "backward_key_kernel"],
            ["forward_tiled_kernel", "backward_row_kernel"],
            ["forward_tiled_kernel", "backward_query_kernel", "backward_key_kernel"],
        )
    elif isinstance(case, LocalAggregationCase):
        wide = "wide_" if max(case.window) > 7 else ""
        right = names == [f"{wide}forward_kernel", f"{wide}forward_kernel", MERGE, f"{wide}backward_weight_kernel"]
    elif isinstance(case, ProductCase):
        *products, last = names
        right = len(products) == 5 and set(products) in (KERNELS_ON_CHIP, KERNELS_IN_MEMORY) and last == MERGE
    elif isinstance(case, NormCase):
        folding = ["forward_kernel", "forward_kernel", "backward_kernel", "track_kernel"]
        right = names == [*folding, "gradient_kernel"]
    elif isinstance(case, DeformableCase):
        right = names == ["forward_kernel", "boxes_kernel", "backward_value_kernel", "backward_sampling_kernel"]
    else:
        raise TypeError(f"no launches are known of {case!r}")
    if not right:
        yield f"other kernels than expected: {names}"


def all_faults(cases: Sequence[Case], triton: str) -> list[str]:
    compiled = compile_elsewhere(cases, triton)
    return [f"{case}: {fault}" for case, kernels in compiled.items() for fault in faults(case, kernels)]


def assert_faultless(cases: Sequence[Case], triton: str) -> None:
    found = all_faults(cases, triton)
    assert not found, f"Triton {triton}:\n" + "\n".join(found)


def test_every_branch():
    assert_faultless(branches(), INSTALLED)


@pytest.mark.parametrize("triton", TRITONS)
def test_random_sample(triton):
    assert_faultless(sample_of(triton), triton)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("triton", TRITONS)
def test_everything_a_release_is_held_to(triton, capability):
    assert_faultless(exhaustive(capability), triton)


def test_a_fault_is_seen():
    """The judge itself: a kernel that is as it should be has no faults, one that is not has one each."""
    case = MixCase(90, "bfloat16", 7, 7, 32)
    good = {
        "kernel": "forward_row_kernel", "stack": 0, "shared": 1000, "tensor_cores": True, "wide_loads": True,
        "narrow_loads": False, "tanh": False,
    }  # fmt: skip
    backward = good | {"kernel": "backward_row_kernel"}
    assert not list(faults(case, [good, backward]))
    for change in (
        {"stack": 8},
        {"shared": 1 << 20},
        {"tensor_cores": False},
        {"wide_loads": False},
        {"tanh": True},
    ):
        assert len(list(faults(case, [good | change, backward]))) == 1, change
    assert len(list(faults(case, [good]))) == 1
    assert len(list(faults(case, [{"kernel": "forward_row_kernel", "error": "PTXASError"}, backward]))) == 1


def test_a_fault_of_sampling_is_seen():
    case = DeformableCase(90, "bfloat16", 32)
    good = {"stack": 0, "shared": 1000, "tensor_cores": False, "wide_loads": True, "narrow_loads": False, "tanh": False}
    names = ("forward_kernel", "boxes_kernel", "backward_value_kernel", "backward_sampling_kernel")
    kernels = {name: good | {"kernel": name} for name in names}
    kernels["boxes_kernel"] |= {"wide_loads": False}
    kernels["backward_value_kernel"] |= {"tensor_cores": True}
    assert not list(faults(case, list(kernels.values())))
    for name, change in (
        ("forward_kernel", {"tensor_cores": True}),
        ("forward_kernel", {"wide_loads": False}),
        ("boxes_kernel", {"stack": 8}),
        ("backward_value_kernel", {"tensor_cores": False}),
        ("backward_sampling_kernel", {"wide_loads": False}),
    ):
        wrong = kernels | {name: kernels[name] | change}
        assert len(list(faults(case, list(wrong.values())))) == 1, (name, change)


def test_samples_reach_every_gpu_dtype_and_op():
    everything = [case for gpu in CAPABILITIES for case in exhaustive(gpu)]
    for sample in (*map(sample_of, TRITONS), everything):
        assert {case.capability for case in sample} == SHARED_MEMORY.keys()
        assert {op for case in sample for op in case.ops} == OPS_IN_TRITON
    in_suite = [case for triton in TRITONS for case in sample_of(triton)]
    for sample in (in_suite, everything):
        assert {case.dtype for case in sample} >= {"bfloat16", "float16", "float32", "tf32"}
    assert random_cases(SAMPLE, seed=0) == random_cases(SAMPLE, seed=0) != random_cases(SAMPLE, seed=1)
