"""Banks of shared memory that the mix's forward reads, and the width of its accesses, by the kernels' own classes."""

import re

import pytest

from builder.cuda_emulator import kernel_sources

# (height, width, head_dim): loads of a warp, one for each place where its lanes begin to read, and the cycles
# that shared memory takes for them. More cycles than loads are bank conflicts.
BANKS = {
    (7, 7, 32): (4, 4),
    (14, 14, 32): (7, 8),  # the last 2 of 14 rows are 1 row apart, not 2
    (28, 28, 32): (16, 16),
    (10, 14, 32): (5, 6),
    (6, 42, 32): (3, 4),
    (4, 56, 32): (2, 4),  # all rows begin in the same bank
    (3, 84, 32): (2, 2),
    (8, 8, 32): (4, 8),
    (9, 12, 32): (5, 5),
    (7, 7, 64): (7, 7),  # a warp reads one token
}


@pytest.fixture(scope="module")
def printed(emulated_program):
    finished = emulated_program("layout.cu", None, *kernel_sources())()
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def test_loads_of_the_window_meet_different_banks(printed):
    found = re.findall(r"forward (\d+)x(\d+)x(\d+): (\d+) loads, (\d+) cycles, (\d+) starts", printed)
    counted = {}
    for height, width, head_dim, loads, cycles, starts in (map(int, numbers) for numbers in found):
        counted[height, width, head_dim] = loads, cycles
        assert starts == height, "every row of the grid begins once"
    assert counted == BANKS


def test_rows_of_a_multiple_of_16_bytes_move_by_16_bytes(printed):
    found = re.findall(r"access of head_dim (\d+), (\d) images, (\d) heads: (\d+)", printed)
    access = {tuple(map(int, case)): int(width) for *case, width in found}
    expected = {8: 16, 24: 16, 40: 16, 20: 4, 33: 2}
    cases = [(head_dim, batch, heads) for head_dim in expected for batch in (1, 2) for heads in (1, 2)]
    assert access == {case: expected[case[0]] for case in cases}
