"""Programs of kernels, built to run on this machine's processor."""

import subprocess
from pathlib import Path

import pytest

from builder import cuda_host

HERE = Path(__file__).parent

# Whatever else a sanitizer finds, a kernel that was stopped in its middle leaves its memory behind.
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66"}


@pytest.fixture(scope="session")
def host_program():
    """host_program(source, sanitizer=None, *more_sources)(*arguments) -> the finished process, its text in stdout."""

    def build(source: str, sanitizer: str | None = None, *more_sources: Path):
        program = cuda_host.build_program(Path(source).stem, [HERE / source, *more_sources], sanitizer)

        def run(*arguments: str) -> subprocess.CompletedProcess:
            return subprocess.run(
                [program, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
                env=ENVIRONMENT,
            )

        return run

    return build
