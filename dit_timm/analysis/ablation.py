"""Ablation: a network without its quadratic terms."""

from contextlib import contextmanager
from typing import Iterator, List, Tuple

import torch
from torch import nn

from ..errors import InvalidInputError
from ..layers.quadratic import ChannelQuadratic2d


def quadratic_terms(model: nn.Module) -> List[ChannelQuadratic2d]:
    """The quadratic terms of a network, in order."""
    return [module for module in model.modules() if isinstance(module, ChannelQuadratic2d)]


@contextmanager
def without_quadratic(model: nn.Module) -> Iterator[int]:
    """Sets the outputs of all quadratic terms to zero inside the context; yields how many there are."""
    def zero(module: nn.Module, inputs: Tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(output)

    terms = quadratic_terms(model)
    handles = [module.register_forward_hook(zero) for module in terms]
    try:
        yield len(terms)
    finally:
        for handle in handles:
            handle.remove()


def remove_quadratic(model: nn.Module) -> None:
    """Set the weights of all quadratic terms to zero.

    Raises:
        InvalidInputError: The network has none.
    """
    terms = quadratic_terms(model)
    if not terms:
        raise InvalidInputError(f'{type(model).__name__} has no quadratic term to remove.')
    for module in terms:
        nn.init.zeros_(module.weight)
