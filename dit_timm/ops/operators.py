"""How a way to compute the quadratic form becomes an operator of torch."""

from typing import Callable

import torch


def register_operators(
        name: str,
        forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        grad_x: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        grad_weight: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Register the three computations as `dit_timm::quadratic_<name>`, `..._grad_x` and `..._grad_weight`.

    `torch.compile`, activation checkpointing and the distributed wrappers then see one node each. For backward
    only the inputs are kept, and only the gradients that are needed are computed. A second derivative is refused.

    Args:
        name: Name of the backend.
        forward: Maps x (P, C) of any strides and weight (O, C, C) to a contiguous (P, O).
        grad_x: Maps grad (P, O) of any strides, x and weight to the gradient of x, a contiguous (P, C).
        grad_weight: Maps grad and x to the gradient of the weight, a contiguous (O, C, C).

    Returns:
        The differentiable operator, a function of x and weight.
    """
    operator = torch.library.custom_op(f'dit_timm::quadratic_{name}', forward, mutates_args=())
    grad_x_operator = torch.library.custom_op(f'dit_timm::quadratic_{name}_grad_x', grad_x, mutates_args=())
    grad_weight_operator = torch.library.custom_op(
        f'dit_timm::quadratic_{name}_grad_weight', grad_weight, mutates_args=(),
    )

    @operator.register_fake
    def _(x, weight):
        return x.new_empty(x.shape[0], weight.shape[0])

    @grad_x_operator.register_fake
    def _(grad, x, weight):
        return x.new_empty(x.shape)

    @grad_weight_operator.register_fake
    def _(grad, x):
        return x.new_empty(grad.shape[1], x.shape[1], x.shape[1])

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return (
            grad_x_operator(grad, x, weight) if ctx.needs_input_grad[0] else None,
            grad_weight_operator(grad, x) if ctx.needs_input_grad[1] else None,
        )

    operator.register_autograd(backward, setup_context=setup_context)
    return operator
