"""Which operators of a block's training step touch memory as large as its image: the passes, no copies, no syncs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from container_kernels import ContainerBlock, usable_backends, use_backend

# Less the mean first: in one product with it, a mean far larger than the deviation would cost the digits.
BACKWARD_OF_A_NORM = ["aten.sub", "aten.addcmul", "aten.add_"]


class Passes(TorchDispatchMode):
    """Names of the operators that write a tensor of at least `numel` elements; of all operators in `names`."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.passes, self.names = numel, [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.name().replace("::", ".").removeprefix("container_kernels.").split(".Tensor")[0]
        self.names.add(name)
        allocates = name.startswith("aten.new_empty") or any(
            result.alias_info is not None and not result.alias_info.is_write for result in function._schema.returns
        )
        written = out if isinstance(out, tuple | list) else [out]
        if not allocates and any(t.numel() >= self.numel for t in written):
            self.passes.append(name.removesuffix("_cpu"))
        return out


@pytest.mark.skipif(usable_backends()["cpu"] is not None, reason="the passes are those of the C++ kernels")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "mix"])
def test_passes_of_a_training_step(dynamic):
    block = ContainerBlock(16, 2, 4.0, dynamic=dynamic, drop_path=0.1)
    x = torch.randn(8, 16, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
    with use_backend("cpu"):
        with Passes(x.numel()) as forward:
            out = block(x)
        grad_out = torch.randn_like(out)
        with Passes(x.numel()) as backward:
            torch.autograd.grad(out, [x, *block.parameters()], grad_out)
    aggregation = "context_aggregation_forward_packed" if dynamic else "local_aggregation_forward"
    assert forward.passes == [
        "local_aggregation_forward_with_moments",
        "projection_forward",
        aggregation,
        "projection_forward_with_moments",
        "fused_mlp_forward",
    ]
    assert backward.passes == [
        "fused_mlp_backward",
        *BACKWARD_OF_A_NORM,
        "projection_backward",
        "context_aggregation_backward_packed" if dynamic else "local_aggregation_forward",
        "projection_backward",
        "aten.add",  # of the residual's and the branch's gradient
        *BACKWARD_OF_A_NORM,
        "local_aggregation_forward",  # with the filters turned: the gradient of the position embedding's input
    ]
    # Nothing waits for a number of the device.
    assert not any("_local_scalar_dense" in name or "nonzero" in name for name in forward.names | backward.names)
