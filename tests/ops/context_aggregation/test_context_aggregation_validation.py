"""Bad input raises before any kernel runs, and the message names the argument, the expectation and what came."""

import pytest
import torch

from container_kernels import context_aggregation

QKV = torch.ones(2, 6, 2, 4)
WEIGHT = torch.ones(8, 3, 3)

CASES = [
    ({"v": [1.0]}, TypeError, r"v: expected a tensor \(B, N, M, D\), got list"),
    ({"v": torch.ones(2, 6, 8)}, ValueError, r"v: expected 4 dimensions \(B, N, M, D\), got shape \(2, 6, 8\)"),
    ({"v": torch.ones(2, 6, 2, 0)}, ValueError, r"v: expected .* at least one head and D ≥ 1, got \(2, 6, 2, 0\)"),
    ({"v": QKV.to(torch.complex64)}, TypeError, "v: expected dtype float32, .* got torch.complex64"),
    ({"q": None}, ValueError, "q: expected a tensor because k is one .* got None"),
    ({"k": None}, ValueError, "k: expected a tensor because q is one .* got None"),
    ({"q": torch.ones(2, 5, 2, 4)}, ValueError, r"q: expected \(B, N, M, D\) = \(2, 6, 2, 4\), got \(2, 5, 2, 4\)"),
    ({"k": QKV.double()}, TypeError, "k: expected dtype torch.float32 as v, got torch.float64"),
    ({"k": QKV.to("meta")}, ValueError, "k: expected device cpu as v, got meta"),
    ({"q": None, "k": None}, ValueError, "expected at least one of the dynamic .* got None for all"),
    (
        {"local_weight": torch.ones(8, 4, 4), "grid_size": (2, 3)},
        ValueError,
        r"local_weight: expected \(C, kh, kw\) = \(8, odd, odd\), got \(8, 4, 4\)",
    ),
    (
        {"local_weight": torch.ones(7, 3, 3), "grid_size": (2, 3)},
        ValueError,
        r"local_weight: expected \(C, kh, kw\) = \(8, odd, odd\), got \(7, 3, 3\)",
    ),
    (
        {"local_weight": torch.ones(8, 13, 3), "grid_size": (2, 3)},
        ValueError,
        r"local_weight: expected kh and kw up to 11, got \(8, 13, 3\)",
    ),
    ({"local_weight": WEIGHT.int(), "grid_size": (2, 3)}, TypeError, "local_weight: expected dtype .* got torch.int32"),
    ({"local_weight": WEIGHT}, ValueError, r"grid_size: expected \(H, W\) with H·W = 6 .* got None"),
    ({"local_weight": WEIGHT, "grid_size": (2, 2)}, ValueError, r"grid_size: expected .* H·W = N = 6, got \(2, 2\)"),
    ({"local_weight": WEIGHT, "grid_size": (-2, -3)}, ValueError, r"grid_size: expected .* got \(-2, -3\)"),
    ({"local_weight": WEIGHT, "grid_size": 6}, ValueError, r"grid_size: expected \(H, W\) with H·W = 6, got 6"),
    ({"local_weight": WEIGHT, "grid_size": (2.0, 3)}, TypeError, r"grid_size: expected two integers .* got \(2.0, 3\)"),
    ({"local_bias": torch.ones(8)}, ValueError, "local_bias: expected None because local_weight is None"),
    (
        {"local_weight": WEIGHT, "grid_size": (2, 3), "local_bias": torch.ones(4)},
        ValueError,
        r"local_bias: expected \(C,\) = \(8,\), got \(4,\)",
    ),
    ({"local_weight": WEIGHT, "grid_size": (True, 6)}, TypeError, "grid_size: expected two integers"),
    ({"v": QKV.to_sparse()}, TypeError, "v: expected a dense tensor, got layout torch.sparse_coo"),
    ({"affinity": torch.ones(2, 6, 5)}, ValueError, r"affinity: expected \(M, N, N\) = \(2, 6, 6\), got \(2, 6, 5\)"),
    ({"alpha": torch.ones(3)}, ValueError, r"alpha: expected shape \(\), \(1,\) or \(M,\) = \(2,\), got \(3,\)"),
    ({"alpha": "1"}, TypeError, "alpha: expected a number or a tensor .* got str"),
    ({"beta": torch.ones(2, dtype=torch.int64)}, TypeError, "beta: expected a floating-point tensor, got torch.int64"),
    ({"scale": torch.ones(())}, TypeError, "scale: expected a number or None, got Tensor"),
    ({"backend": "fastest"}, ValueError, "backend: expected one of cuda, triton, cpu, reference, got 'fastest'"),
]


@pytest.mark.parametrize(("change", "error", "message"), CASES)
def test_bad_input_is_named(change, error, message):
    arguments = {"q": QKV, "k": QKV, "v": QKV, **change}
    with pytest.raises(error, match=message):
        context_aggregation(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)
