"""Tritons to compile with beside the one that is installed, and a process that compiles with one of them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
from compile_cases import Case

ROOT = Path(__file__).parents[2]
INSTALLED = version("triton")
# What the oldest torch that is supported brings, and the newest there is.
OTHERS = tuple(other for other in ("3.6.0", "3.9.0") if other != INSTALLED)
WORKERS = 2


def site_of(triton: str) -> Path | None:
    """Folder to put in front of PYTHONPATH, None for the installed Triton; another is fetched once, into build/."""
    if triton == INSTALLED:
        return None
    folder = ROOT / "build" / "triton" / triton
    if not (folder / "triton").exists():
        fetched = folder.with_name(f"{triton}.part-{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", fetched]
        done = subprocess.run([*command, f"triton=={triton}"], capture_output=True, text=True)
        if done.returncode:
            reason = f"Triton {triton} cannot be fetched: {done.stderr.strip().splitlines()[-1]}"
            pytest.fail(reason) if os.environ.get("CONTAINER_KERNELS_REQUIRE_EXT") == "1" else pytest.skip(reason)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fetched.rename(folder)
    return folder


def compile_elsewhere(cases: Sequence[Case], triton: str = INSTALLED) -> dict[Case, list[dict]]:
    """The facts of every kernel of the cases, compiled by `triton` in processes of their own."""
    site = site_of(triton)
    path = os.pathsep.join(str(p) for p in (site, ROOT, os.environ.get("PYTHONPATH")) if p)
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path}

    def compile_share(share: Sequence[Case]) -> list[list[dict]]:
        run = subprocess.run(
            [sys.executable, Path(__file__).with_name("offline_compiler.py")],
            input=json.dumps([(type(case).__name__, asdict(case)) for case in share]),
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        return [json.loads(line)["kernels"] for line in run.stdout.splitlines()]

    # In turn, as neighbours take about the same time.
    shares = [cases[worker::WORKERS] for worker in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(compile_share, shares))
    return {
        case: facts
        for share, found in zip(shares, results, strict=True)
        for case, facts in zip(share, found, strict=True)
    }
