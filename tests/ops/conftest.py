"""Without a GPU, a test with the parameter backend="cuda" runs the CUDA kernels on this machine's processor."""

import pytest
from backends import GPU

from container_kernels.testing import run_cuda_on_host


@pytest.fixture(autouse=True)
def _cuda_on_host(request):
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if GPU or parameters.get("backend") != "cuda":
        yield
    else:
        with run_cuda_on_host():
            yield
