# SPDX-License-Identifier: MIT
"""The device of the GPU check: the architecture that is built for it, what can run on it, how fast it is.

    python -m bench.gpu_check.device --output device.json

Prints `python -m container_kernels` and the two rates that floors are made of, measured beside those of the table in
bench/roofline.py. Exits with 1 when the CUDA kernels cannot run here: the tests would run them on the processor.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

QUERY = ("name", "compute_cap", "memory.total", "driver_version", "clocks.sm", "clocks.max.sm", "temperature.gpu")


def gpu_facts() -> dict[str, str]:
    """Facts that nvidia-smi has of the first GPU, without importing torch; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        return {}
    return dict(zip(QUERY, done.stdout.splitlines()[0].split(", "), strict=True))


def shipped_arch(compute_capability: str, archs: str) -> str:
    """The part of a list such as "80+100+PTX;90a" that an install would run on a GPU of this compute capability.

    Machine code runs on its own major version from its minor version on, on exactly its own version where it has a
    letter; PTX, of the first of an entry, is compiled by the driver for everything later. Code that is joined to
    another one's stays so: it is made from the same first half.

    Raises:
        ValueError: no entry runs there.
    """
    wanted = tuple(map(int, compute_capability.split(".")))
    code, ptx = [], []
    for entry in archs.split(";"):
        targets = entry.split("+")
        first = targets[0]
        for target in targets:
            if target == "PTX":
                if _version(first) < wanted:
                    ptx.append((_version(first), f"{first}+PTX"))
            elif _runs_on(target, wanted):
                code.append((_version(target), target if target == first else f"{first}+{target}"))
    if not code and not ptx:
        raise ValueError(f"no code for compute capability {compute_capability} in {archs}")
    return max(code or ptx)[1]


def _version(target: str) -> tuple[int, int]:
    digits = target.rstrip("af")
    return int(digits[:-1]), int(digits[-1])


def _runs_on(target: str, wanted: tuple[int, int]) -> bool:
    version = _version(target)
    return version == wanted or (target.isdigit() and version[0] == wanted[0] and version[1] <= wanted[1])


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    from bench import machine, roofline
    from container_kernels import __main__ as report
    from container_kernels import usable_backends

    report.main()
    device, dtype = options.device, machine.bench_dtype(options.device)
    measured = roofline.measured_rates(device, dtype)
    known = roofline.DEVICES.get(machine.device_name(device), measured)
    facts = {"gpu": gpu_facts(), "conditions": machine.conditions(device)}
    facts |= {"rates of floors": asdict(known), "rates measured": asdict(measured)}
    partial = options.output.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(options.output)
    print(f"floors: {known.source}\n{measured.source}")
    why_not = usable_backends()["cuda"] if device == "cuda" else None
    if why_not:
        print(f"the CUDA kernels cannot run here: {why_not}")
    return 1 if why_not else 0


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
