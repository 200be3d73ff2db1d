"""The quadratic form as the paper writes it: the reference that every other backend is tested against."""

import torch

from .precision import accumulation_dtype


def quadratic_form_reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Materialise all `C * C` products at every pixel, then sum them with their weights.

    Args:
        x: Inputs of shape (P, C).
        weight: Weights of shape (O, C, C).

    Returns:
        Outputs of shape (P, O), with the dtype of `x`.
    """
    dtype = accumulation_dtype(x.dtype)
    channels = x.to(dtype)
    products = channels.unsqueeze(2) * channels.unsqueeze(1)
    return torch.einsum('pij,oij->po', products, weight.to(dtype)).to(x.dtype)
