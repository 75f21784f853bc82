"""The shipped kernels under AddressSanitizer (accesses beyond an end) and ThreadSanitizer (races), in both orders."""

import pytest

from builder.cuda_emulator import kernel_sources


# The sanitizers do not depend on the order: every access is looked at, and barriers alone order those of fibers.
@pytest.mark.parametrize(
    ("sanitizer", "order"),
    [(None, "ascending"), (None, "descending"), ("address", "ascending"), ("thread", "descending")],
)
def test_kernels_are_clean(emulated_program, sanitizer, order):
    finished = emulated_program("run_kernels.cu", sanitizer, *kernel_sources())(order)
    assert finished.returncode == 0, finished.stdout[-4000:]
    assert finished.stdout == "all kernels ran\n"
