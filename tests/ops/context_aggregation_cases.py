"""Inputs of context aggregation, what they are run with, and the terms of gradients that are sums."""

import torch


def gradient_of(out):
    """A fixed random output gradient, of numbers that every dtype can hold."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out.device)


def run(function, inputs, **options):
    """Output and gradients of `function`."""
    qkv, arguments = inputs.arguments()
    out = function(*qkv, **arguments, **options)
    return out, inputs.gradients(out, gradient_of(out))


def summed_by_mixing_weights(inputs, exact):
    """The terms of gradients that are one or a few sums, with what each term is rounded by.

    local_bias is a sum over all tokens for each channel, of which the one with the largest terms counts. beta's are
    grad_out ∘ out. alpha's are P ∘ dP with P = exp(S − logsumexp): a score rounded by eps·|S| and a row's logsumexp
    rounded by eps·|logsumexp| shift the exponent, so they change P by as much, relatively.
    """
    grad_out = gradient_of(exact).double()
    (q, k, v), arguments = inputs.arguments()
    rows = (grad_out * torch.as_tensor(arguments["beta"]).reshape(-1, 1)).flatten(2).flatten(0, 1)
    terms = {"beta": grad_out * exact, "local_bias": rows[:, rows.norm(dim=0).argmax()] if rows.numel() else rows}
    if q is not None:
        scores = torch.einsum("bimd,bjmd->bmij", q, k) * arguments["scale"]
        logsumexp = scores.logsumexp(-1)
        weighted = scores.softmax(-1) * torch.einsum("bimd,bjmd->bmij", grad_out, v)
        terms["alpha"] = torch.cat(
            [(weighted * (1 + scores.abs())).flatten(), (weighted.sum(-1) * logsumexp).flatten()]
        )
    return terms
