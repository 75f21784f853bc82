# SPDX-License-Identifier: MIT
"""The device of the GPU check: the architecture that is built for it, what can run on it, how fast it is.

    python bench/check_device.py --output device.json

Prints `python -m container_kernels` and the two rates that floors are made of, measured beside those of the table in
bench/floors.py. Exits with 1 when the CUDA kernels cannot run here: the tests would run them on the processor.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUERY = ("name", "compute_cap", "memory.total", "driver_version", "clocks.sm", "clocks.max.sm", "temperature.gpu")


def gpu_facts() -> dict[str, str]:
    """What nvidia-smi knows of the first GPU, without importing torch; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        return {}
    return dict(zip(QUERY, done.stdout.splitlines()[0].split(", "), strict=True))


def shipped_arch(compute_capability: str, archs: str) -> str:
    """The entry of a list such as "80+PTX;90a" whose code an install would run on a GPU of this compute capability.

    Machine code runs on its own major version from its minor version on, on exactly its own version where it has a
    letter; PTX is compiled by the driver for everything later.

    Raises:
        ValueError: no entry runs there.
    """
    wanted = tuple(map(int, compute_capability.split(".")))
    code, ptx = [], []
    for entry in archs.split(";"):
        digits, letter, with_ptx = re.fullmatch(r"(\d+)([a-z]?)(\+PTX)?", entry).groups()
        version = int(digits[:-1]), int(digits[-1])
        if version == wanted or (not letter and version[0] == wanted[0] and version[1] <= wanted[1]):
            code.append((version, f"{digits}{letter}"))
        elif with_ptx and version < wanted:
            ptx.append((version, entry))
    if not code and not ptx:
        raise ValueError(f"no code for compute capability {compute_capability} in {archs}")
    return max(code or ptx)[1]


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    import floors
    import machine

    from container_kernels import __main__ as report
    from container_kernels import usable_backends

    report.main()
    device, dtype = options.device, machine.bench_dtype(options.device)
    measured = floors.measured_rates(device, dtype)
    known = floors.DEVICES.get(machine.device_name(device), measured)
    facts = {"gpu": gpu_facts(), "conditions": machine.conditions(device)}
    facts |= {"rates of floors": asdict(known), "rates measured": asdict(measured)}
    options.output.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
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
