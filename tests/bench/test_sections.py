"""The table's sections: sizes of their problems."""

from bench.problems import sections


def test_cpu_gets_a_sixteenth_of_the_batch():
    names = [problem.name for problem in sections.all_problems("cpu", ["context_aggregation"])]
    assert names[0] == "mix forward, 8×7×7, 512 channels, 16 heads"
    assert names[5] == "mix forward, 1×50×84, 320 channels, 10 heads"
    assert len(names) == len(set(names)) == 12
    on_gpu = sections.all_problems("cuda", ["context_aggregation"])
    assert on_gpu[0].name == "mix forward, 128×7×7, 512 channels, 16 heads"
