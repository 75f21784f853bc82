"""Banks of shared memory that the mix's kernels read, and the width of their accesses, by the kernels' own classes."""

import re

import pytest

from builder.cuda_host import kernel_sources

# (kernel, height, width, head_dim): loads of a warp, one for each place where its lanes begin to read, and the cycles
# that shared memory takes for them. More cycles than loads are bank conflicts.
BANKS = {
    ("forward", 7, 7, 32): (4, 4),
    ("backward", 7, 7, 32): (4, 4),
    ("forward", 14, 14, 32): (7, 8),  # of 14 rows 6 have one that is 2 rows away, modulo 4, to themselves
    ("backward", 14, 14, 32): (14, 16),
    ("forward", 28, 28, 32): (16, 16),
    ("forward", 10, 14, 32): (5, 6),
    ("backward", 10, 14, 32): (10, 12),
    ("forward", 6, 42, 32): (3, 4),
    ("backward", 6, 42, 32): (18, 20),
    ("forward", 4, 56, 32): (2, 4),  # all rows begin in the same bank
    ("backward", 4, 56, 32): (16, 16),
    ("forward", 3, 84, 32): (2, 2),
    ("backward", 3, 84, 32): (18, 20),
    ("forward", 8, 8, 32): (4, 8),
    ("backward", 8, 8, 32): (8, 16),  # spans of 7 and of 1
    ("forward", 9, 12, 32): (5, 5),
    ("backward", 9, 12, 32): (9, 18),
    ("forward", 7, 7, 64): (7, 7),  # a warp reads one token
    ("backward", 7, 7, 64): (7, 7),
}


@pytest.fixture(scope="module")
def printed(host_program):
    finished = host_program("layout.cu", None, *kernel_sources())()
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def test_loads_of_the_window_meet_different_banks(printed):
    found = re.findall(r"(\w+) (\d+)x(\d+)x(\d+): (\d+) loads, (\d+) cycles, (\d+) starts", printed)
    counted = {}
    for kernel, *numbers in found:
        height, width, head_dim, loads, cycles, starts = map(int, numbers)
        counted[kernel, height, width, head_dim] = loads, cycles
        # Every row of the grid, and in the backward every span of 7 tokens, begins once.
        assert starts == height * (1 if kernel == "forward" else -(-width // 7))
    assert counted == BANKS


def test_rows_of_a_multiple_of_16_bytes_move_by_16_bytes(printed):
    found = re.findall(r"access of head_dim (\d+), (\d) images, (\d) heads: (\d+)", printed)
    access = {tuple(map(int, case)): int(width) for *case, width in found}
    expected = {8: 16, 24: 16, 40: 16, 20: 4, 33: 2}
    cases = [(head_dim, batch, heads) for head_dim in expected for batch in (1, 2) for heads in (1, 2)]
    assert access == {case: expected[case[0]] for case in cases}
