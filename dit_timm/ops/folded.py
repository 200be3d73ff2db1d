"""The folded layout: one coefficient per unordered pair of channels.

`x_i x_j` and `x_j x_i` are the same product, so of the `C * C` weights of an output only
`K = C * (C + 1) / 2` sums matter. Row `i` of the folded layout holds the pairs (i, i), (i, i + 1), ... (i, C - 1),
and the rows follow one another: the order of `torch.triu_indices`.

The parameter of a layer stays the full (O, C, C) tensor: see `dit_timm.layers.ChannelQuadratic2d`.
"""

import torch


def fold(weight: torch.Tensor) -> torch.Tensor:
    """Sum the two weights of every unordered pair.

    Args:
        weight: Weights A of shape (O, C, C).

    Returns:
        Folded weights B of shape (O, K): `B[o, (i, i)] = A[o, i, i]`, `B[o, (i, j)] = A[o, i, j] + A[o, j, i]`.
    """
    first, second = _pairs(weight.shape[-1], weight.device)
    folded = weight[:, first, second]
    off_diagonal = (first != second).to(weight.dtype)
    return folded.addcmul_(weight[:, second, first], off_diagonal)


def unfold_grad(grad: torch.Tensor, channels: int) -> torch.Tensor:
    """The gradient of `fold`: both weights of a pair receive the gradient of their sum.

    Args:
        grad: Gradient of the folded weights, shape (O, K).
        channels: C.

    Returns:
        Gradient of the full weights, shape (O, C, C).
    """
    first, second = _pairs(channels, grad.device)
    full = grad.new_empty(grad.shape[0], channels, channels)
    full[:, first, second] = grad
    full[:, second, first] = grad
    return full


def _pairs(channels: int, device: torch.device) -> torch.Tensor:
    return torch.triu_indices(channels, channels, device=device)
