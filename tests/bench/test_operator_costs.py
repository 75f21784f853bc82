"""What an operator costs, and what a step keeps alive, from its arguments and results."""

import torch
import torch.nn.functional as F

from bench import roofline
from bench.profiling.step_recorder import record_step


def recorded(call):
    return record_step(call, torch.nn.Identity())


def costs(call):
    return [(o.name, o.cost.kernels, o.cost.bytes, o.cost.flops) for o in recorded(call).operators]


def test_operators_cost_what_goes_in_and_out():
    x, y = torch.randn(10, 4), torch.randn(4, 6)
    assert costs(lambda: x + x) == [("add", 1, 3 * 160, 0)]
    assert costs(lambda: x @ y) == [("mm", 1, 160 + 96 + 240, 2 * 10 * 4 * 6)]
    # A row is read once, however often it is used; views and allocations are free.
    assert costs(lambda: x + x[:1].expand(10, 4)) == [("add", 1, 160 + 16 + 160, 0)]
    assert costs(lambda: x.t().view(4, 10)[None]) == [] and costs(lambda: torch.empty(5)) == []
    # In place: read and written; filling only writes.
    assert costs(lambda: x.add_(1)) == [("add_", 1, 320, 0)]
    assert costs(lambda: x.zero_()) == [("zero_", 1, 160, 0)]
    assert [o.cost.copies for o in recorded(lambda: x.t().contiguous()).operators] == [1]


def test_convolutions_cost_a_kernel_a_gradient():
    x = torch.randn(2, 6, 5, 5, requires_grad=True)
    weight = torch.randn(6, 1, 3, 3, requires_grad=True)
    out = F.conv2d(x, weight, padding=1, groups=6)
    ((name, kernels, _, flops),) = costs(lambda: F.conv2d(x, weight, padding=1, groups=6))
    assert (name, kernels, flops) == ("convolution", 1, 2 * 9 * out.numel())
    operators = {o.name: o.cost for o in recorded(lambda: out.backward(torch.ones_like(out))).operators}
    assert operators["convolution_backward"].kernels == 2
    assert operators["convolution_backward"].flops == 2 * 2 * 9 * out.numel()


def test_our_operators_cost_what_the_floors_say():
    from container_kernels import context_aggregation, fused_mlp, local_aggregation, projection

    def flops(call):
        total = 0
        for operator in recorded(call).operators:
            total += operator.cost.flops
        return total

    def both(function, *tensors):
        leaves = [t.requires_grad_() for t in tensors]
        return lambda: function(*leaves).sum().backward()

    x, w1, w2 = torch.randn(2, 6, 16), torch.randn(32, 16), torch.randn(16, 32)
    assert flops(both(lambda x, w1, w2: fused_mlp(x, w1, None, w2, None), x, w1, w2)) == (
        roofline.fused_mlp(12, 16, 32, 4, True).flops
    )
    assert flops(both(projection, x, w1)) == roofline.projection(12, 16, 32, 4, True).flops
    image, filters = torch.randn(2, 5, 6, 8), torch.randn(8, 5, 5)
    assert flops(both(local_aggregation, image, filters)) == roofline.local_aggregation(2, 30, 8, 5, 4, True).flops
    q, k, v = (torch.randn(2, 30, 2, 16) for _ in range(3))
    assert flops(both(context_aggregation, q, k, v)) == roofline.context_aggregation(2, 30, 32, 4, True).flops


def test_memory_is_what_lives_beyond_the_inputs():
    x = torch.zeros(1000)

    def forward():
        kept = x + 1  # 4000 bytes
        (x + 2).sum()  # 4000 more, and a sum of 4
        return kept

    step = recorded(forward)
    assert (step.peak_bytes, step.kept_bytes) == (8004, 0)
    x.requires_grad_()
    # The exponential is kept for its own gradient, the sum after it is not, but for the loss.
    assert recorded(lambda: (x.exp() + 1).sum().backward()).kept_bytes == 4000 + 2 * 4


def test_synchronizations_are_counted():
    x = torch.tensor([1.0, 2.0])
    assert recorded(lambda: x.sum().item()).synchronizations == 1
    assert recorded(lambda: x.sum()).synchronizations == 0
