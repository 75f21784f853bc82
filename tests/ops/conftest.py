"""Where the CUDA kernels cannot run on a GPU, a test with the parameter backend="cuda" runs them on the processor."""

import pytest
from backends import CUDA_ON_GPU

from container_kernels import usable_backends
from container_kernels.testing import emulate_cuda


@pytest.fixture(autouse=True)
def _cuda_emulated(request):
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if CUDA_ON_GPU or parameters.get("backend") != "cuda":
        yield
    elif "gpu" in request.keywords:
        pytest.skip(usable_backends()["cuda"])
    else:
        with emulate_cuda():
            yield
