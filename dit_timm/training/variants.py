"""Variants of a Dit network that are trained beside it, to see what the quadratic term is worth: `--variant`."""

from functools import partial

import torch
from torch import nn

from ..analysis.ablation import quadratic_terms
from ..config.parts import FROZEN, MLP
from ..errors import InvalidInputError
from ..layers import ChannelQuadratic2d


class MlpTerm(nn.Module):
    """A control for the quadratic term: as many parameters and an ordinary non-linearity, and zero at first too.

    Args:
        term: The quadratic term that it stands in for, of C input and O output channels. The hidden layer has
            O C^2 / (C + O) channels, rounded.
    """

    def __init__(self, term: ChannelQuadratic2d) -> None:
        super().__init__()
        self.stride, self.offset = term.stride, term.offset
        hidden = max(1, round(term.out_chs * term.in_chs ** 2 / (term.in_chs + term.out_chs)))
        conv = partial(nn.Conv2d, kernel_size=1, bias=False, device=term.weight.device, dtype=term.weight.dtype)
        self.conv1 = conv(term.in_chs, hidden)
        self.act = nn.ReLU()
        self.conv2 = conv(hidden, term.out_chs)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the shape that the quadratic term has."""
        x = x[..., self.offset[0]::self.stride[0], self.offset[1]::self.stride[1]]
        return self.conv2(self.act(self.conv1(x)))


def apply(model: nn.Module, variant: str) -> nn.Module:
    """Change a network as `--variant` asks for, in place.

    Raises:
        InvalidInputError: It has no quadratic term to change.
    """
    if variant not in (FROZEN, MLP):
        return model
    if not quadratic_terms(model):
        raise InvalidInputError(
            f'--variant {variant} needs a network with a quadratic term; {type(model).__name__} has none.'
        )
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, ChannelQuadratic2d) and variant == MLP:
                setattr(module, name, MlpTerm(child))
            elif isinstance(child, ChannelQuadratic2d):
                child.requires_grad_(False)
    return model
