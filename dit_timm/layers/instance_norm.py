"""Instance normalisation without parameters, at any map size."""

import torch
from torch import nn


def standardize_maps(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Subtract the mean of each (H, W) map and divide by its standard deviation, half precision in float32.

    Args:
        x: Maps of shape (..., H, W).
        eps: Added to the variance.

    Returns:
        Maps of the shape and dtype of `x`.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    centred = wide - wide.mean((-2, -1), keepdim=True)
    variance = centred.square().mean((-2, -1), keepdim=True)
    return (centred * torch.rsqrt(variance + eps)).to(x.dtype)


# A leaf for torch.fx: the function looks at the dtype of a value, which does not exist while a graph is traced.
torch.fx.wrap('standardize_maps')


class InstanceNorm2d(nn.Module):
    """Standardise every channel of every image over its positions.

    Stands in for the paper's LayerNorm over the map, whose per-position affine would tie a network to one input size.
    It has no affine of its own: the scale of a channel is a factor of the quadratic weights behind it. Differs from
    `torch.nn.InstanceNorm2d` in that it accepts a map of a single position (the result is zero) and computes half
    precision in float32, under autocast too.

    Args:
        eps: Added to the variance.

    Shape:
        Input and output (N, C, H, W) or (C, H, W), same dtype.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return standardize_maps(x, self.eps)

    def extra_repr(self) -> str:
        return f'eps={self.eps}'
