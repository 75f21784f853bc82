# SPDX-License-Identifier: MIT
"""The machine at hand, and the conditions that a measured number cannot do without."""

import os
import platform
import subprocess
from datetime import date
from importlib import metadata
from pathlib import Path

import torch

import container_kernels
from container_kernels import usable_backends

# That of the library that is measured, which need not be this tree's.
LIBRARY = Path(container_kernels.__file__).resolve().parents[1]

# All that `torch.compile` has: CUDA graphs are made of every contender by the clock. On a CPU its default, because a
# search among kernels takes longer than everything else.
COMPILE_MODES = {"cuda": "max-autotune-no-cudagraphs", "cpu": "default"}


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def bench_dtype(device: str) -> torch.dtype:
    """The dtype that is trained and deployed with: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()}, {os.cpu_count()} cores"


def conditions(device: str) -> dict[str, str]:
    """Everything that a reader needs to judge or repeat a measurement, by name."""
    backends = [name for name, why_not in usable_backends().items() if why_not is None]
    rows = {
        "device": device_name(device),
        "dtype": str(bench_dtype(device)).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "usable backends": ", ".join(backends),
        "torch": torch.__version__,
        "torch.compile of networks": f"mode {COMPILE_MODES[device]}",
        "triton": _version("triton"),
        "timm": _version("timm"),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": date.today().isoformat(),
    }
    if device == "cuda":
        rows["CUDA"] = torch.version.cuda
    else:
        # More running processes than cores make a CPU's times worthless.
        rows["load average"] = f"{os.getloadavg()[0]:.1f} when the measurement began"
    return rows


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Short commit of the library's tree, and whether files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=LIBRARY, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "container_kernels", "csrc")
        return git("rev-parse", "--short", "HEAD") + (" with local changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "not in a git repository"
