"""The suite runs with and without a GPU: without one, Triton kernels run on CPU tensors in its interpreter."""

import os

import torch

GPU = torch.cuda.is_available()
if GPU:
    # cuDNN's default; the kernels are judged by what float32 is.
    torch.backends.cudnn.allow_tf32 = False
else:
    # Read when a kernel is decorated, so before anything imports one.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Workers of pytest-xdist share the processor: a core each, and not all cores for each.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(workers)))

import pytest  # noqa: E402

import container_kernels  # noqa: E402, F401 - registers the models


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.keywords and not GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _same_randomness():
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler():
    """torch.compile starts from nothing, and reaching its recompilation limit is an error, not a silent eager run."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()
