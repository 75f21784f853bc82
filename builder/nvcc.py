# SPDX-License-Identifier: MIT
"""nvcc: where it is, which GPUs it compiles for, and what it needs around it."""

import os
import re
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path

from .commands import CannotBuild, Command, NothingToBuild, run
from .project import env

# What makes up nvcc on PyPI. They work together within one minor version.
WHEELS = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
WHEELS_VERSION = "13.0"
LOWEST_ARCH = 80


def find() -> str:
    """Path of nvcc: the system's, or the one of the PyPI wheels where CONTAINER_KERNELS_NVCC asks for it.

    Raises:
        NothingToBuild: the system has none.
        CannotBuild: the wheels are not there.
    """
    kind = env.value("CONTAINER_KERNELS_NVCC")
    if kind == "pypi":
        return _find_in_wheels()
    if kind != "system":
        raise CannotBuild(f"CONTAINER_KERNELS_NVCC must be system or pypi, got {kind!r}")
    roots = [env.value("CUDA_HOME"), env.value("CUDA_PATH")]
    folders = [os.path.join(root, "bin") for root in roots if root]
    # None is PATH.
    for folder in [*folders, None, "/usr/local/cuda/bin"]:
        found = shutil.which("nvcc", path=folder)
        if found:
            return found
    raise NothingToBuild("no nvcc under CUDA_HOME, CUDA_PATH, on PATH or in /usr/local/cuda")


def _find_in_wheels() -> str:
    for entry in sys.path:
        for nvcc in sorted(Path(entry).glob("nvidia/*/bin/nvcc")):
            return str(nvcc)
    raise CannotBuild(
        "CONTAINER_KERNELS_NVCC is pypi, but its wheels are not installed; pip fetches them itself unless it is told "
        f"--no-build-isolation, then first: pip install {' '.join(wheels(_installed_runtime()))}"
    )


def _installed_runtime() -> str:
    """The minor version that an installed runtime (torch's, say) prescribes for the other wheels."""
    try:
        return ".".join(metadata.version("nvidia-cuda-runtime").split(".")[:2])
    except metadata.PackageNotFoundError:
        return WHEELS_VERSION


def wheels(version: str = WHEELS_VERSION) -> list[str]:
    """The wheels as requirements."""
    return [f"{name}=={version}.*" for name in WHEELS]


def version(nvcc: str) -> str:
    """Such as "nvcc 13.0, V13.0.88"."""
    release = re.search(r"release (.+)", run([nvcc, "--version"]))
    return f"nvcc {release[1]}" if release else "nvcc of unknown version"


def static_runtime_folder(nvcc: str) -> Path:
    """The folder of libcudart_static.a, which nvcc itself tells or which lies beside it."""
    told = dict(
        re.findall(r"^#\$ (TOP|LIBRARIES) *=(.*)$", run([nvcc, "--dryrun", "-x", "cu", os.devnull]), re.MULTILINE)
    )
    folders = [Path(flag[2:]) for flag in shlex.split(told.get("LIBRARIES", "")) if flag.startswith("-L")]
    top = Path(told.get("TOP", Path(nvcc).parent.parent))
    # The wheels' nvcc names lib64, but they have lib.
    for folder in [*folders, top / "lib64", top / "lib", *top.glob("targets/*/lib")]:
        if (folder / "libcudart_static.a").exists():
            return folder
    raise CannotBuild(f"no libcudart_static.a of {nvcc}: looked in {', '.join(map(str, folders))} and under {top}")


def host_compiler_flags(nvcc: str, compiler: list[str], probe: Path) -> Command:
    """Make nvcc use our C++ compiler where it supports it (not every version it does), else leave it its own."""
    probe.write_text("")
    ours: Command = ["-ccbin", compiler[0], *(f"-Xcompiler={argument}" for argument in compiler[1:])]
    for flags in (ours, []):
        try:
            # -E: what an unsupported compiler stumbles over is in the headers. The name alone, since nvcc cannot take
            # every path.
            run([nvcc, "-std=c++20", *flags, "-E", probe.name], probe.parent)
        except CannotBuild as failure:
            error = failure
        else:
            return flags
    raise error


def known_archs(nvcc: str, archs: str) -> str:
    """`archs` without the GPUs that this nvcc is too old for."""
    known = set(re.findall(r"sm_(\d+)", run([nvcc, "--list-gpu-code"])))
    entries = []
    for entry in archs.split(";"):
        parts = [part for part in entry.split("+") if part == "PTX" or part.rstrip("af") in known]
        entries.append("+".join(parts))
    return ";".join(entry for entry in entries if entry)


def arch_flags(nvcc: str, archs: str) -> list[str]:
    """-gencode flags for a list such as "80+100+PTX;90a": code for each, and with +PTX code for all later ones too.

    What is joined by + goes through the compiler's first half once, for the first of them: faster to build, without the
    features that only the others have.

    Raises:
        CannotBuild: an entry is not understood, too low, or "native" on a machine without a GPU.
    """
    if archs == "native":
        if "Cannot find valid GPU" in run([nvcc, "-arch=native", "--dryrun", "-x", "cu", os.devnull]):
            raise CannotBuild("CONTAINER_KERNELS_CUDA_ARCHS is native, but this machine has no GPU")
        return ["-arch=native"]
    flags = []
    for entry in re.split(r"[;,\s]+", archs.strip()):
        first, *others = entry.replace(".", "").lower().split("+")
        targets = [other for other in (first, *others) if other != "ptx"]
        if first == "ptx" or not all(re.fullmatch(r"\d{2,3}[af]?", target) for target in targets):
            expected = "native or entries such as 80, 90a, 80+PTX, 80+86"
            raise CannotBuild(f"CONTAINER_KERNELS_CUDA_ARCHS: expected {expected}, got {entry!r}")
        if any(int(target.rstrip("af")) < LOWEST_ARCH for target in targets):
            raise CannotBuild(f"CONTAINER_KERNELS_CUDA_ARCHS: the kernels need {LOWEST_ARCH} or higher, got {entry!r}")
        code = ",".join([*(f"sm_{target}" for target in targets), *([f"compute_{first}"] if "ptx" in others else [])])
        flags += ["-gencode", f"arch=compute_{first},code={f'[{code}]' if others else code}"]
    return flags
