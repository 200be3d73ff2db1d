"""The ways to compute the quadratic form that are compared."""

from contextlib import contextmanager
from functools import partial
from typing import Callable, Iterator, Optional, Tuple

import torch

from ..ops import available_backends, quadratic_form, register_backend, unregister_backend
from ..ops.backends import MATERIALISED, automatic_backend
from ..ops.materialised import quadratic_form_materialised as materialised

OURS, ROOFLINE, BASE = 'ours', 'roofline', 'base network'


def form(implementation: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The function of an implementation: 'ours' (the automatic backend), 'materialised', or a backend by name."""
    if implementation == MATERIALISED:
        return materialised
    return partial(quadratic_form, backend=None if implementation == OURS else implementation)


def backend_of(implementation: str, device: str, dtype: torch.dtype, shape: Optional[Tuple[int, int, int]]) -> str:
    """The backend behind an implementation, at a shape (P, C, O) if it has one; empty where there is none."""
    if implementation == OURS:
        return automatic_backend(torch.device(device), dtype, *shape) if shape else available_backends(device, dtype)[0]
    return '' if implementation in (MATERIALISED, ROOFLINE, BASE) else implementation


@contextmanager
def materialised_backend() -> Iterator[None]:
    """Let layers name 'materialised' as their backend. It stands behind all others: never the automatic choice."""
    register_backend(MATERIALISED, materialised)
    try:
        yield
    finally:
        unregister_backend(MATERIALISED)
