"""Every kind of mistake that a kernel could have is planted in one, and must be found; the same kernel without it must
pass, in both orders and under both sanitizers."""

import re
from functools import cache
from pathlib import Path

import pytest

SOURCE = "planted_bugs.cu"
TEXT = (Path(__file__).parent / SOURCE).read_text()
BUGS = re.findall(r"BUG\((\w+)\),", TEXT)
ORDERS = ("ascending", "descending")

# What the emulator says, with the kernel and the line.
REPORTED = {
    "never_waited": "has not waited for this copy_async",
    "wrong_shuffle_mask": "shuffle: the lane is not in its own mask 0x7fffffff",
    "shuffle_from_outside_mask": "shuffle: reads a lane that its mask leaves out",
    "warp_operation_in_a_branch": "deadlock, no thread can go on",
    "ballot_without_a_lane": "deadlock, no thread can go on",
    "lowest_bit_of_none": "lowest_bit: no bit is set",
    "different_warp_operations": "shuffle: the lanes of the warp are at different operations",
    "barrier_in_a_branch": "divergent barrier, not all threads reach it",
    "two_barriers_for_one": "divergent barrier: the threads of the block wait at different places",
    "misaligned_vector": "load: the address is not a multiple of 16 bytes",
    "misaligned_copy": "copy_async, shared side: the address is not a multiple of 16 bytes",
    "misaligned_copy_of_nothing": "copy_async, global side: the address is not a multiple of 16 bytes",
    "matrix_outside_shared_memory": "load_matrix: a row lies outside shared memory",
}
# NaN where there should be a number: wrong in at least one of the two orders.
POISONED = (
    "missing_barrier",
    "missing_warp_barrier",
    "missing_wait",
    "wait_for_too_few",
    "wait_without_barrier",
    "unwritten_shared_memory",
)
OUT_OF_BOUNDS = (
    "lost_bounds_check_of_a_load",
    "lost_bounds_check_of_a_store",
    "lost_bounds_check_of_a_copy",
    "shared_memory_overrun",
)
RACES = (
    "missing_barrier",
    "missing_barrier_before_reuse",
    "missing_warp_barrier",
    "wait_without_barrier",
    "sum_of_two_blocks",
)


def lines_of(bug: str) -> range:
    """The lines of the kernel in the source, counted from 1."""
    lines = TEXT.splitlines()
    first = next(number for number, line in enumerate(lines, 1) if f"{bug}(const float" in line)
    return range(first, lines.index("}", first) + 2)


def assert_names_a_line(report: str, bug: str) -> None:
    found = {int(line) for line in re.findall(rf"{re.escape(SOURCE)}:(\d+)", report)}
    assert found & set(lines_of(bug)), report


@pytest.fixture(scope="module")
def planted_bugs(emulated_program):
    return cache(lambda sanitizer: emulated_program(SOURCE, sanitizer))


def test_every_bug_is_looked_for():
    assert set(BUGS) == {*REPORTED, *POISONED, *OUT_OF_BOUNDS, *RACES}


@pytest.mark.parametrize("sanitizer", [None, "address", "thread"])
@pytest.mark.parametrize("bug", BUGS)
def test_nothing_is_found_without_the_mistake(planted_bugs, bug, sanitizer):
    for order in ORDERS:
        finished = planted_bugs(sanitizer)(bug, "right", order)
        assert (finished.returncode, finished.stdout) == (0, "right\n"), finished.stdout


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bug", REPORTED)
def test_report(planted_bugs, bug, order):
    finished = planted_bugs(None)(bug, "wrong", order)
    assert finished.returncode == 1
    assert REPORTED[bug] in finished.stdout and f"{bug}<false>, block (0, 0, 0)" in finished.stdout
    assert_names_a_line(finished.stdout, bug)


@pytest.mark.parametrize("bug", POISONED)
def test_poison(planted_bugs, bug):
    assert "wrong\n" in {planted_bugs(None)(bug, "wrong", order).stdout for order in ORDERS}


@pytest.mark.parametrize("bug", OUT_OF_BOUNDS)
def test_address_sanitizer(planted_bugs, bug):
    finished = planted_bugs("address")(bug, "wrong", "ascending")
    assert finished.returncode != 0 and "heap-buffer-overflow" in finished.stdout
    assert_names_a_line(finished.stdout, bug)


@pytest.mark.parametrize("bug", RACES)
def test_thread_sanitizer(planted_bugs, bug):
    finished = planted_bugs("thread")(bug, "wrong", "ascending")
    assert finished.returncode == 66 and "data race" in finished.stdout
    assert_names_a_line(finished.stdout, bug)
