# SPDX-License-Identifier: MIT
"""Report of what is installed here, which backends can run, and why the others cannot.

python -m container_kernels
python -m container_kernels --model container_light     and what runs in a network: `Network.explain`
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

import torch

from . import _env, _extension

Rows = list[tuple[str, str]]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m container_kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="NAME", help="explain a network, by its name in timm")
    options = parser.parse_args(arguments)
    explained = None if options.model is None else _explanation(options.model)
    sections = {
        "versions": _versions(),
        "devices": _devices(),
        "extension": _extension_rows(_extension.build_record, _extension.cpu),
        "backends": _backends(),
        "automatic choice: the first row that fits, of it the first backend that can serve, else reference": _choice(),
        "environment variables, read at run time": _variables(_env.RUN_VARIABLES),
        "environment variables, read by the build": _variables(_env.BUILD_VARIABLES),
    }
    print("\n\n".join(_section(title, rows) for title, rows in sections.items()))
    if explained is not None:
        print(f"\n{options.model}, float32, one image on {explained.device}\n{explained.table}")


def _section(title: str, rows: Rows) -> str:
    """The title, and below it two columns; further lines of a text stay in its column."""
    width = max((len(label) for label, _ in rows), default=0)
    lines = [title]
    for label, text in rows:
        first, *others = text.splitlines() or [""]
        lines.append(f"  {label:<{width}}  {first}")
        lines += [f"  {'':<{width}}  {other}" for other in others]
    return "\n".join(lines)


def _versions() -> Rows:
    rows = [("python", f"{platform.python_version()} on {platform.platform()}")]
    for package in ("container_kernels", "torch", "triton", "timm", "numpy"):
        try:
            rows.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            rows.append((package, "not installed"))
    return rows


def _devices() -> Rows:
    rows = [("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads")]
    try:
        torch.cuda.init()
    # A torch without CUDA raises AssertionError, a machine without driver or device RuntimeError.
    except (AssertionError, RuntimeError) as error:
        return [*rows, ("cuda", f"none: {str(error).splitlines()[0]}")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        capability = f"compute capability {device.major}.{device.minor}"
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        rows.append((f"cuda:{index}", f"{device.name}, {capability}, {memory}, CUDA {torch.version.cuda}"))
    return rows


def _extension_rows(record, cpu) -> Rows:
    """The build's own record, and the instruction set level of it that this processor uses."""
    if not record:
        return [("record", "none: setup.py has not run here")]
    built, cuda = record["cpu"], record["cuda"]
    rows = [("built for", record["python"])]
    rows.append(("cpu module", "built" if built["built"] else f"not built: {built['reason']}"))
    if "compiler" in built:
        rows.append(("compiler", f"{built['compiler']}: {built['compiler_version']}"))
    if "isa_levels" in built:
        unknown = ", ".join(built["isa_levels_unknown_to_compiler"])
        left_out = f" (unknown to the compiler: {unknown})" if unknown else ""
        rows += [
            ("flags", built["flags"]),
            ("OpenMP", "yes" if built["openmp"] else "no: the compiler does not support it"),
            ("ISA levels", ", ".join(built["isa_levels"]) + left_out),
        ]
    if cpu is not None:
        rows.append(("ISA in use", cpu.isa()))
    rows.append(("cuda module", "built" if cuda["built"] else f"not built: {cuda['reason']}"))
    if "compiler_version" in cuda:
        rows.append(("CUDA compiler", f"{cuda['nvcc']}: {cuda['compiler_version']}"))
    if "flags" in cuda:
        rows += [("CUDA flags", cuda["flags"]), ("CUDA archs", cuda["archs"])]
    return rows


def _backends() -> Rows:
    from .ops.dispatch.backend import usable_backends

    return [(name, "usable" if why is None else f"no: {why}") for name, why in usable_backends().items()]


def _choice() -> Rows:
    from .ops.dispatch.preference import ROWS

    return [(row.condition, f"{', '.join(row.order)} ({row.because})") for row in ROWS]


class _Explained(NamedTuple):
    device: torch.device
    table: str


def _explanation(name: str) -> _Explained:
    import timm

    from .models import Network

    if not timm.is_model(name):
        raise SystemExit(f"--model: expected the name of a network in timm, got {name!r}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = timm.create_model(name).to(device)
    if not isinstance(network, Network):
        raise SystemExit(f"--model: expected a network of container_kernels, {name} is of timm itself")
    return _Explained(device, network.explain())


def _variables(variables: dict[str, _env.Variable]) -> Rows:
    rows = []
    for name, variable in variables.items():
        now = _env.value(name)
        state = f"default {now or 'unset'}" if now == variable.default else f"set to {now}"
        rows.append((name, f"{variable.meaning} [{state}]"))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
