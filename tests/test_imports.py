"""What a fresh process sees: imports without Triton or without the extension, and a compile as the very first call."""

import os
import subprocess
import sys

import pytest


def run(code: str, **environment: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def block(*modules: str) -> str:
    return f"""
import sys, importlib.abc
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Blocked())
"""


USE = """
import torch
import container_kernels as ck
block = ck.ContainerBlock(32, 2)
x = torch.randn(2, 32, 5, 6, requires_grad=True)
block(x).sum().backward()
assert x.grad.isfinite().all()
"""


def test_without_the_extension():
    run(block("container_kernels._C_cpu") + USE + "assert 'blocked' in ck.usable_backends()['cpu']\n")


def test_import_is_quiet_and_kernels_are_imported_by_the_first_call_that_needs_them():
    quiet = "import sys, warnings\nwarnings.simplefilter('error')\nimport container_kernels\nwarnings.resetwarnings()\n"
    run(quiet + USE + "assert 'container_kernels.ops.context_aggregation.triton' not in sys.modules\n")


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_first_call_is_a_compiled_one(backend):
    code = """
import torch
from container_kernels import context_aggregation
v = torch.randn(1, 6, 1, 8, device="cuda" if torch.cuda.is_available() and {backend!r} == "triton" else "cpu")
function = lambda v: context_aggregation(v, v, v, backend={backend!r})
compiled = torch.compile(function, fullgraph=True)
torch.testing.assert_close(compiled(v), context_aggregation(v, v, v, backend="reference"))
"""
    import torch

    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    run(code.format(backend=backend), **interpret)
