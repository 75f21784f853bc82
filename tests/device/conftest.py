"""Programs of kernels, built to run on this machine's processor."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from builder import cuda_emulator

HERE = Path(__file__).parent

# Whatever else a sanitizer finds, a kernel that was stopped in its middle leaves its memory behind.
SANITIZER_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66"}


@cache
def fixed_addresses() -> list[str]:
    """A command in front of another, where this machine allows it: older ThreadSanitizers know fewer address layouts
    than newer Linuxes choose from."""
    command = [shutil.which("setarch") or "setarch", "--addr-no-randomize"]
    try:
        return command if subprocess.run([*command, "true"], capture_output=True).returncode == 0 else []
    except OSError:
        return []


@pytest.fixture(scope="session")
def emulated_program():
    """emulated_program(source, sanitizer=None, *more_sources)(*arguments) -> the finished process, text in stdout."""

    def build(source: str, sanitizer: str | None = None, *more_sources: Path):
        program = cuda_emulator.build_program(Path(source).stem, [HERE / source, *more_sources], sanitizer)

        def run(*arguments: str) -> subprocess.CompletedProcess:
            return subprocess.run(
                [*(fixed_addresses() if sanitizer == "thread" else []), program, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
                env=os.environ | SANITIZER_OPTIONS,
            )

        return run

    return build
