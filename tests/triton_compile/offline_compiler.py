"""Compiles what the cases on stdin launch, for GPUs that need not be there, and prints the facts of every kernel.

    python offline_compiler.py < CASES.json

A program of its own: the suite interprets its kernels, a process either interprets or compiles, and which Triton
compiles is a matter of PYTHONPATH. Launchers run on meta tensors with a driver that only names its target, so each
kernel is specialized exactly as a real call would specialize it.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from compile_cases import CASE_TYPES, SHARED_MEMORY, Case


class OfflineDriver:
    """As much of a Triton driver as launchers and the compiler ask for."""

    def __init__(self, capability: int):
        self.capability = capability
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED_MEMORY[capability]},
            load_binary=load_binary,
        )

    def get_current_device(self):
        return self.capability  # what is cached by device is cached by kind of GPU

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def launcher_cls(self, source, metadata):
        return None


def load_binary(name: str, cubin: bytes, shared: int, device: int) -> tuple:
    """A kernel's module, function, registers, spilled words and most threads, as far as its machine code tells them."""
    usage = resource_usage(cubin)
    return "module", "function", usage["REG"], usage["STACK"] + usage["LOCAL"], 1024


def compile_case(case: Case) -> list[dict]:
    """Launch the case on meta tensors, compiling only, and describe the kernels that it would have run.

    A kernel that does not compile, as where ptxas crashes, is described by its error.
    """
    facts = []
    run = triton.runtime.jit.JITFunction.run

    def compile_only(self, *args, warmup, **kwargs):
        try:
            kernel = run(self, *args, warmup=True, **kwargs)
        except Exception as error:
            facts.append({"kernel": self.__name__, "error": f"{type(error).__name__}: {str(error)[:500]}"})
            raise
        if not warmup:  # a launch, not the choice of its tiles
            facts.append(describe(self.__name__, kernel))
        return kernel

    triton.runtime.driver.set_active(OfflineDriver(case.capability))
    triton.runtime.jit.JITFunction.run = compile_only
    try:
        with torch.device("meta"):
            case.launch()
    except Exception as error:
        if not any("error" in kernel for kernel in facts):
            facts.append({"kernel": "launch", "error": f"{type(error).__name__}: {str(error)[:500]}"})
    finally:
        triton.runtime.jit.JITFunction.run = run
    return facts


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers, bytes of stack, of local and of shared memory, … of the one kernel in a cubin."""
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", report)}


def describe(name: str, kernel) -> dict:
    """What ptxas and the PTX say about one kernel."""
    usage = resource_usage(kernel.asm["cubin"])
    ptx = kernel.asm["ptx"]
    return {
        "kernel": name,
        "registers": usage["REG"],
        "stack": usage["STACK"] + usage["LOCAL"],
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "tensor_cores": re.search(r"\b(w?g?mma\S*\.sync|tcgen05\.mma)", ptx) is not None,
        "wide_loads": re.search(r"ld\.global\S*\.v4|cp\.async\S* .*0x10", ptx) is not None,
        "tanh": "tanh.approx" in ptx,
        "narrow_loads": re.search(r"ld\.global\S*\.b16", ptx) is not None,
    }


if __name__ == "__main__":
    for kind, fields in json.load(sys.stdin):
        case = CASE_TYPES[kind](**fields)
        # A line as soon as it is known: long sweeps are watched.
        print(json.dumps({"case": [kind, asdict(case)], "kernels": compile_case(case)}), flush=True)
