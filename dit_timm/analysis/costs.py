"""What a network costs: parameters, multiply-accumulates, activations."""

from typing import NamedTuple, Tuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..layers.quadratic import ChannelQuadratic2d


class Costs(NamedTuple):
    """The costs of one image.

    Attributes:
        parameters: Parameters, in millions.
        gmacs: Multiply-accumulates, in 10^9.
        activations: Outputs of convolutions and quadratic terms, in millions.
    """
    parameters: float
    gmacs: float
    activations: float


# In inference mode the counter of torch 2.5 sees no convolution.
@torch.no_grad()
def count_costs(model: nn.Module, input_size: Tuple[int, int, int]) -> Costs:
    """Count on an image of zeros, in evaluation mode.

    Args:
        model: The network.
        input_size: Channels, height and width of its input.
    """
    model.eval()
    outputs = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output.numel()))
        for module in model.modules() if isinstance(module, (nn.Conv2d, ChannelQuadratic2d))
    ]
    parameters = list(model.parameters())
    image = torch.zeros(1, *input_size, device=parameters[0].device, dtype=parameters[0].dtype)
    try:
        with FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return Costs(
        sum(parameter.numel() for parameter in parameters) / 1e6, counter.get_total_flops() / 2e9, sum(outputs) / 1e6,
    )
