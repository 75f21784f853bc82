"""Targets: each has its row, and is met as a whole."""

from bench import targets
from bench.problems import sections
from bench.targets import Target


def test_every_target_has_its_row():
    for device, wanted in (("cuda", targets.GPU), ("cpu", targets.CPU)):
        rows = {(p.kind, baseline) for p in sections.all_problems(device) for baseline in p.baselines}
        assert wanted.keys() <= rows
    assert targets.target("mix forward, N ≤ 256", "eager", "cpu").ratio == 2
    assert targets.target("mix forward, N ≤ 256", "eager", "cuda").ratio == 5
    assert targets.target("depthwise forward", "eager", "cpu") is None


def test_target_is_met_as_a_whole():
    target = Target(3, of_floor=0.8, memory=0.5)
    assert str(target) == "≥ 3×, ≥ 80% of floor, ≤ 0.5× memory"
    assert target.met(3.0, 0.8, 0.5)
    assert not target.met(2.99, 0.9, 0.4)
    assert not target.met(4.0, 0.79, 0.4)
    assert not target.met(4.0, 0.9, 0.51)
    assert Target(3).met(3.1, 0.1, None)
