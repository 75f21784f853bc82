"""Where the CUDA kernels cannot run on a GPU, a test with the parameter backend="cuda" runs them on the processor."""

import pytest
from backends import CUDA_ON_GPU

from container_kernels import usable_backends
from container_kernels.testing import run_cuda_on_host


@pytest.fixture(autouse=True)
def _cuda_on_host(request):
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if CUDA_ON_GPU or parameters.get("backend") != "cuda":
        yield
    elif "gpu" in request.keywords:
        pytest.skip(usable_backends()["cuda"])
    else:
        with run_cuda_on_host():
            yield
