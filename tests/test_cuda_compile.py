"""What nvcc made of the kernels: registers and spills within a budget, the instructions that the design counts on.

Read from the build's own logs and module, so it needs a build by nvcc, but no GPU.
"""

import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from builder import cuda, nvcc
from builder.commands import run
from builder.project import SOURCES
from container_kernels import _env, _extension

RECORD = _extension.build_record.get("cuda", {"built": False, "reason": "no build"})
pytestmark = [
    pytest.mark.skipif(not RECORD["built"], reason=f"needs nvcc: {RECORD['reason']}"),
    pytest.mark.skipif(
        RECORD.get("archs") != _env.VARIABLES["CONTAINER_KERNELS_CUDA_ARCHS"].default,
        reason=f"needs a build for the GPUs that are the default, has one for {RECORD.get('archs')}",
    ),
]

# Registers that a thread may use at most, by kernel (the first pattern that fits counts): with 65536 of them on a
# multiprocessor they say how many blocks it holds at once, which the design of the kernels counts on.
BUDGET = {
    r"(forward|backward_weight)_kernel<.*, 3, .*>": 128,  # depthwise 3×3: 4 blocks of 128 threads
    r"(forward|backward_weight)_kernel<.*, 5, true>": 168,  # 5×5, aligned: 3 blocks
    r"(forward|backward_weight)_kernel<.*>": 255,  # 7×7, and what is not aligned: 2 blocks
    r"wide_(forward|backward_weight)_kernel<.*>": 96,  # windows up to 11×11: 5 blocks of 128 threads
    r"sum_partials_kernel": 64,  # 4 blocks of 256 threads
    r"merge_statistics_kernel": 64,  # 4 blocks of 256 threads
    r"context_aggregation_forward_kernel<(BFloat16|Half), (32|64)>": 128,  # 2 blocks of 256 threads, 8 of 64
    r"context_aggregation_forward_kernel<32>": 128,  # float32
    r"context_aggregation_forward_kernel<.*>": 255,
    r"backward_kernel<\w+, (32|64)>": 128,  # 1 block of 512 threads, or as many smaller ones as that
    r"backward_kernel<.*>": 255,
    r"sum_over_batch": 64,
    # Lanes by query, blocks of 256 threads: 4 of them; in float32, with two accesses a pixel, 3; in single elements 2.
    r"deformable_attention_(forward|backward_sampling)_kernel<(BFloat16|Half), true>": 64,
    r"deformable_attention_(forward|backward_sampling)_kernel<float, true>": 80,
    r"deformable_attention_(forward|backward_sampling)_kernel<.*, false>": 128,
    r"deformable_attention_backward_value_kernel<.*>": 96,  # 2 blocks of 256 threads, by their shared memory
    r"query_boxes_kernel": 40,  # 12 blocks of 128 threads
    r"probe": 32,  # asks whether there is code for a GPU
}

# Kernels of the two designs that shall use these instructions: 16-byte copies into shared memory (LDGSTS) and stores,
# tensor cores (HMMA) with their operands from shared memory (LDSM).
INSTRUCTIONS = {
    r"forward_kernel<.*, true>": (r"LDGSTS\..*\.128", r"STG\..*128"),
    r"backward_weight_kernel<.*, true>": (r"LDGSTS\..*\.128",),
    r"(context_aggregation_forward|backward)_kernel<BFloat16, \d+>": (
        r"LDGSTS\..*\.128",
        r"HMMA\.16816\.F32\.BF16",
        r"LDSM\.",
    ),
    r"(context_aggregation_forward|backward)_kernel<Half, \d+>": (r"LDGSTS\..*\.128", r"HMMA\.16816\.F32$", r"LDSM\."),
    r"context_aggregation_forward_kernel<\d+>": (r"LDGSTS\..*\.128", r"FFMA"),
    r"backward_kernel<\w+, \d+>": (r"LDGSTS\..*\.128", r"STG\..*128", r"FFMA"),
    # A pixel's channels in vectors; for the gradient of value, a quarter of a warp has four of them in shared memory.
    r"deformable_attention_forward_kernel<.*, true>": (r"LDG\..*128", r"STG\..*128"),
    r"deformable_attention_backward_sampling_kernel<.*, true>": (r"LDG\..*128", r"SHFL"),
    r"deformable_attention_backward_value_kernel<\w+, \w+>": (r"LDS\.128", r"STS\.128", r"VOTE"),
    r"deformable_attention_backward_value_kernel<(BFloat16|Half), true>": (r"LDG\..*64",),
}
# Kernels that shall have at most so many instructions for each of the others: a vote instead of shuffles is there; the
# mix's backward has its windows from shared memory, so that few loads of global memory are left beside the copies; and
# rows are copied in batches, in front of each of which ptxas places three loads of nothing.
RATIOS = {
    r"context_aggregation_forward_kernel<.*>": ((r"SHFL", 75, r"VOTE"), (r"LDS RZ", 2, r"LDGSTS")),
    r"backward_kernel<\w+, \d+>": ((r"LDG\.", 1, r"LDGSTS"), (r"LDS RZ", 2, r"LDGSTS")),
}
ARCHS = ("80", "90a", "100", "120")
# Compute capabilities that run the code of another one, or code from PTX, where the build has none of their own.
OTHER_ARCHS = ("86", "89", "90")


def demangled(names):
    """C++ names by the names that the linker knows."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, text.splitlines(), strict=True))


@cache
def compiled():
    """(architecture, kernel with its template arguments) -> (registers, bytes of stack, bytes spilled)."""
    facts = {}
    for source in sorted(SOURCES.glob("**/*.cu")):
        facts |= facts_of(build_log(source))
    return facts


def build_log(source):
    return (cuda.FOLDER / f"{source.relative_to(SOURCES)}.log").read_text()


def facts_of(log):
    """`compiled` of what ptxas has printed."""
    entries = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    names = demangled([entry[0] for entry in entries])
    return {
        (arch, kernel_name(names[name])): (int(registers), int(stack), int(stores) + int(loads))
        for name, arch, stack, stores, loads, registers in entries
    }


def kernel_name(name):
    """ck::cuda::kernel<…> without the namespaces, the arguments and what only the linker needs."""
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|ck::cuda::|ck::|^void ", "", name)
    depth = 0
    for position, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return name[:position]
    return name


@cache
def opcodes(arch):
    """Kernel -> how often each opcode occurs in its machine code; with the operands where it loads nothing."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton")
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run(
        [tool, "-sass", "-arch", f"sm_{arch}", _extension.cuda.__file__], capture_output=True, text=True, check=True
    ).stdout
    parts = re.split(r"Function : (\w+)", text)[1:]
    names = demangled(parts[::2])
    return {
        kernel_name(names[mangled]): Counter(
            re.findall(r"^\s+/\*\w+\*/\s+(?:@!?U?P\w+ )?([A-Z]\S*(?: RZ, \[RZ\])?)", code, re.MULTILINE)
        )
        for mangled, code in zip(parts[::2], parts[1::2], strict=True)
    }


def count(opcode_counts, pattern):
    return sum(number for opcode, number in opcode_counts.items() if re.match(pattern, opcode))


def fitting(pattern, kernels):
    return [kernel for kernel in kernels if re.fullmatch(pattern, kernel)]


def test_what_all_lanes_execute_together_is_not_moved():
    """Without volatile a compiler may move mma.sync or ldmatrix into a branch that some lanes do not take."""
    text = (SOURCES / "cuda" / "device_nvcc.h").read_text()
    statements = re.findall(r"\basm\b( volatile)?\((.*?)\);", text, re.DOTALL)
    together = [(volatile, code) for volatile, code in statements if ".sync" in code]
    assert len(together) >= 6
    assert all(volatile for volatile, _ in together), together


def test_every_architecture_is_compiled():
    assert {arch for arch, _ in compiled()} == set(ARCHS)
    kernels = [{kernel for arch, kernel in compiled() if arch == wanted} for wanted in ARCHS]
    assert all(others == kernels[0] for others in kernels)
    for pattern in BUDGET:
        assert fitting(pattern, kernels[0]), f"no kernel is meant by {pattern}"


def check_registers(facts):
    wrong = []
    for (arch, kernel), (registers, stack, spilled) in facts.items():
        budget = next((limit for pattern, limit in BUDGET.items() if re.fullmatch(pattern, kernel)), None)
        if budget is None:
            wrong.append(f"{kernel}: has no budget")
        elif registers > budget or stack or spilled:
            wrong.append(
                f"sm_{arch} {kernel}: {registers} registers of {budget}, {stack} stack, {spilled} spilled bytes"
            )
    assert not wrong, "\n".join(wrong)


def test_registers_and_spills():
    check_registers(compiled())


@pytest.mark.slow
@pytest.mark.parametrize("arch", OTHER_ARCHS)
@pytest.mark.parametrize("source", sorted(SOURCES.glob("**/*.cu")), ids=lambda path: str(path.relative_to(SOURCES)))
def test_registers_and_spills_of_other_gpus(source, arch, tmp_path):
    compiler = [nvcc.find(), *cuda.NVCC_FLAGS, *nvcc.arch_flags("", arch), "-I", SOURCES]
    facts = facts_of(run([*compiler, "-cubin", source, "-o", tmp_path / "kernels.cubin"]))
    assert facts.keys() == {(arch, kernel) for _, kernel in facts_of(build_log(source))}
    check_registers(facts)


@pytest.mark.parametrize("arch", ARCHS)
def test_ratios_of_instructions(arch):
    wrong = [
        f"{kernel}: {count(counts, few)} {few}, {count(counts, many)} {many}"
        for pattern, ratios in RATIOS.items()
        for kernel in fitting(pattern, opcodes(arch))
        for counts in [opcodes(arch)[kernel]]
        for few, most, many in ratios
        if count(counts, few) > most * count(counts, many)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("arch", ARCHS)
def test_instructions(arch):
    kernels = opcodes(arch)
    assert kernels.keys() == {kernel for other, kernel in compiled() if other == arch}
    missing = [
        f"{kernel}: no {instruction}"
        for pattern, instructions in INSTRUCTIONS.items()
        for kernel in fitting(pattern, kernels) or [f"no kernel is meant by {pattern}"]
        for instruction in instructions
        if not count(kernels.get(kernel, Counter()), instruction)
    ]
    # What ptxas calls no spill, an array that is indexed while running, is local memory all the same.
    local = [kernel for kernel, counts in kernels.items() if count(counts, r"(LDL|STL)\b")]
    assert not missing and not local, "\n".join([*missing, *(f"{kernel}: uses local memory" for kernel in local)])
