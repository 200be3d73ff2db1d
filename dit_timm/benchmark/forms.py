"""The ways to compute the quadratic form that are compared."""

from contextlib import contextmanager
from functools import partial
from typing import Callable, Iterator

import torch

from ..ops import available_backends, quadratic_form, register_backend, unregister_backend

OURS, MATERIALISED, ROOFLINE, BASE = 'ours', 'materialised', 'roofline', 'base network'


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


def form(implementation: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The function of an implementation: 'ours' (the automatic backend), 'materialised', or a backend by name."""
    if implementation == MATERIALISED:
        return materialised
    return partial(quadratic_form, backend=None if implementation == OURS else implementation)


def backend_of(implementation: str, device: str, dtype: torch.dtype) -> str:
    """The backend behind an implementation; empty where there is none."""
    if implementation == OURS:
        return available_backends(device, dtype)[0]
    return '' if implementation in (MATERIALISED, ROOFLINE, BASE) else implementation


@contextmanager
def materialised_backend() -> Iterator[None]:
    """Let layers name 'materialised' as their backend. It stands behind all others: never the automatic choice."""
    register_backend(MATERIALISED, materialised)
    try:
        yield
    finally:
        unregister_backend(MATERIALISED)
