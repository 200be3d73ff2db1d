"""The ways to compute the quadratic form that are compared."""

from contextlib import contextmanager
from functools import partial
from typing import Callable, Iterator

import torch

from ..ops import available_backends, dispatch, quadratic_form

OURS, MATERIALISED, FLOOR, BASE = 'ours', 'materialised', 'floor', 'base network'


def materialised(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The authors' formula as one writes it in plain torch; autograd keeps all the products.

    Unlike backend 'reference', it stays in the dtype of its inputs and spends one matrix product on the sum.

    Args:
        x: Inputs of shape (P, C).
        weight: Weights of shape (O, C, C).

    Returns:
        Outputs of shape (P, O).
    """
    return (x.unsqueeze(2) * x.unsqueeze(1)).flatten(1) @ weight.flatten(1).t()


def form(contestant: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The function of a contestant: 'ours' (the automatic backend), 'materialised', or a backend by name."""
    if contestant == MATERIALISED:
        return materialised
    return partial(quadratic_form, backend=None if contestant == OURS else contestant)


def backend_of(contestant: str, device: str, dtype: torch.dtype) -> str:
    """The backend behind a contestant; empty where there is none."""
    if contestant == OURS:
        return available_backends(device, dtype)[0]
    return '' if contestant in (MATERIALISED, FLOOR, BASE) else contestant


@contextmanager
def materialised_backend() -> Iterator[None]:
    """Let layers name 'materialised' as their backend. It stands behind all others: never the automatic choice."""
    dispatch._BACKENDS[MATERIALISED] = dispatch.Backend(materialised)
    try:
        yield
    finally:
        del dispatch._BACKENDS[MATERIALISED]
