# SPDX-License-Identifier: MIT
"""Benchmarks by pytest-benchmark, one group per problem, one row per implementation.

    pytest bench --benchmark-only                  measure: small shapes on a CPU, all of them on a GPU
    pytest bench --benchmark-only --all-shapes     all of them anywhere
    pytest bench                                   run everything but torch.compile once, as checks

Each implementation is checked against eager before it is timed. The table at the end has bytes, FLOPs, floor and % of
floor, as has the JSON (`--benchmark-json`). For ratios to steer by run `python -m bench.table`, where contenders
take turns.
"""

import functools

import pytest

from bench import machine, names, roofline, timing
from bench.problems.problem import checked_contenders, contender_names
from bench.problems.sections import all_problems, small_problems

DEVICE = machine.default_device()


def pytest_addoption(parser):
    parser.addoption("--all-shapes", action="store_true", help="on a CPU too, measure every shape")


def pytest_configure(config):
    # The project's default is to run benchmarks once, as checks; --benchmark-only asks for more, not for an error.
    if config.option.benchmark_only:
        config.option.benchmark_disable = False
    config.addinivalue_line("markers", "section(name): the problems of a section of the table that the test measures")


def pytest_report_header(config):
    return [f"{name}: {value}" for name, value in machine.conditions(DEVICE).items()]


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(machine.conditions(DEVICE))


def pytest_generate_tests(metafunc):
    """A test of a section gets every problem of it with every implementation."""
    marker = metafunc.definition.get_closest_marker("section")
    if marker is None:
        return
    options = metafunc.config.option
    everything = DEVICE == "cuda" or options.all_shapes
    problems = (all_problems if everything else small_problems)(DEVICE, marker.args)
    # Compiling takes longer than everything else, and is not ours to check.
    left_out = () if options.benchmark_only or options.benchmark_enable else (names.COMPILED,)
    pairs = [(p, name) for p in problems for name in contender_names(p) if name not in left_out]
    metafunc.parametrize(("problem", "implementation"), pairs, ids=[_identifier(p.name, name) for p, name in pairs])


def _identifier(*names: str) -> str:
    """Names in the plain characters that `pytest -k` takes."""
    return "-".join(names).replace("×", "x").replace(", ", "-").replace(" + ", "_").replace(" ", "_")


@pytest.fixture
def measure(benchmark):
    """Check an implementation of a problem against eager, then time it."""
    rates = _rates()

    def run(problem, implementation):
        checked, unavailable = checked_contenders(problem, [implementation])
        if unavailable:
            pytest.skip(unavailable[implementation])
        benchmark.group = problem.name
        benchmark.name = implementation
        benchmark(checked[implementation])
        cost = roofline.total(problem.kernels)
        floor_ms = rates.floor_ms(problem.kernels)
        benchmark.extra_info.update(bytes=cost.bytes, flops=cost.flops, floor_ms=floor_ms, rates=rates.source)
        if benchmark.stats is not None:
            benchmark.extra_info["percent_of_floor"] = 100 * floor_ms / (1e3 * benchmark.stats.stats.median)

    return run


def pytest_collection_modifyitems(items):
    # A few rounds of what may take a second; the check before has warmed everything up.
    settings = pytest.mark.benchmark(min_rounds=3, max_time=0.3, warmup=False, timer=timing.synchronized_clock)
    for item in items:
        item.add_marker(settings)


def pytest_terminal_summary(terminalreporter, config):
    rows = [b for b in config._benchmarksession.benchmarks if "percent_of_floor" in b.extra_info]
    if not rows:
        return
    eager = {b.group: b.stats.median for b in rows if b.name == names.EAGER}
    terminalreporter.section("against eager and against the floor")
    terminalreporter.write_line(f"floor: {rows[0].extra_info['rates']}")
    head = ("implementation", "median ms", "× eager", "MB", "GFLOP", "floor ms", "% of floor")
    for group in dict.fromkeys(b.group for b in rows):
        terminalreporter.write_line(f"\n{group}")
        terminalreporter.write_line("  {:<26}{:>12}{:>9}{:>11}{:>11}{:>12}{:>12}".format(*head))
        for row in (b for b in rows if b.group == group):
            info, median = row.extra_info, row.stats.median
            ratio = f"{eager[group] / median:.2f}" if group in eager else ""
            terminalreporter.write_line(
                f"  {row.name:<26}{1e3 * median:>12.3f}{ratio:>9}{info['bytes'] / 1e6:>11.2f}"
                f"{info['flops'] / 1e9:>11.3f}{info['floor_ms']:>12.4f}{info['percent_of_floor']:>12.1f}"
            )


@functools.cache
def _rates() -> roofline.Rates:
    return roofline.rates(machine.device_name(DEVICE), DEVICE, machine.bench_dtype(DEVICE))
