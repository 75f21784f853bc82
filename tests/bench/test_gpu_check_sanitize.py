"""The GPU check's way to compute-sanitizer."""

from bench.gpu_check import sanitize


def test_sanitizer_runs_the_kernels_as_built(tmp_path, monkeypatch):
    built = []
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "$@" >>"$0.log"\nexit 3\n')
    tool.chmod(0o755)
    monkeypatch.setattr(sanitize, "build_program", lambda source, program, archs: built.append(archs))
    monkeypatch.setenv("CONTAINER_KERNELS_CUDA_ARCHS", "90a")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitize.main("racecheck", tmp_path) == 3 and built == ["90a"]
    program = tmp_path / "sanitized" / "run_kernels"
    assert (tmp_path / "compute-sanitizer.log").read_text() == f"--tool racecheck --error-exitcode 3 {program}\n"


def test_without_a_sanitizer_nothing_is_checked_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: None)
    assert sanitize.main("memcheck", tmp_path) == sanitize.NOT_RUN
    assert capsys.readouterr().out == "compute-sanitizer is not on this machine\n"
