"""The quadratic form by matrix products with the weights as they are: on a CPU the fastest for few outputs or pixels.

Plain torch, in one of two orders:

- x . (A x), a tile of pixels at a time. The other backends form C (C + 1) / 2 products at each pixel however few the
  outputs are; with few outputs that is most of their work.
- A . (x x^T), with all C * C products, for at most a quarter as many pixels as outputs: then the products take at most
  a quarter of the memory of A. The other backends fold all weights first, however few the pixels are.

Either order takes twice the arithmetic that symmetry leaves necessary. What is multiplied and summed is at least
float32.
"""

from typing import Dict, Iterator, NamedTuple, Optional

import torch

from .operators import register_operators
from .precision import accumulation_dtype

# Elements of A x of the pixels that are computed at a time: in the second-level cache of a CPU's core, elsewhere enough
# to hide the launch of a kernel.
_CPU_TILE_ELEMENTS = 1 << 18
_DEVICE_TILE_ELEMENTS = 1 << 24
# At least so many pixels are in a matrix product, even where the tile is larger then.
_MIN_TILE_PIXELS = 16
# So many times as many outputs as pixels are few pixels.
_OUTPUTS_PER_PIXEL = 4


class _Few(NamedTuple):
    """Up to how many outputs it is faster than a backend, from how many channels on."""
    outputs: int
    channels: int


# Measured in float32, and chunked in float64, on a CPU with AVX-512 (hub/results/benchmark_cpu_op_few.csv and
# benchmark_cpu_op_few_float64.csv). Extrapolated: half precision, other CPUs.
_FEW: Dict[str, _Few] = {'native': _Few(2, 96), 'chunked': _Few(8, 1)}


def is_contracted_faster(backend: str, pixels: Optional[int], channels: int, outputs: int) -> bool:
    """Whether the contracted form is faster on a CPU than a backend.

    Args:
        backend: The backend's name.
        pixels: Pixels, of all images; None if they are not known.
        channels: Channels of x.
        outputs: Outputs.
    """
    few = _FEW.get(backend)
    if few is None or channels < few.channels:
        return False
    return outputs <= few.outputs or pixels is not None and _are_few(pixels, outputs)


def _are_few(pixels: int, outputs: int) -> bool:
    return _OUTPUTS_PER_PIXEL * pixels <= outputs


def _tiles(x: torch.Tensor, outputs: int) -> Iterator[slice]:
    """Tiles of the pixels of x (P, C)."""
    pixels, channels = x.shape
    elements = _CPU_TILE_ELEMENTS if x.device.type == 'cpu' else _DEVICE_TILE_ELEMENTS
    size = max(_MIN_TILE_PIXELS, elements // max(1, outputs * channels))
    return (slice(start, min(start + size, pixels)) for start in range(0, pixels, size))


def _multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left @ right`, of matrices or batches of them.

    Into memory that is given: that is what autocast leaves alone, which is on where backward is called within it.
    """
    result = left.new_empty(*left.shape[:-1], right.shape[-1])
    return (torch.mm if left.ndim == 2 else torch.bmm)(left, right, out=result)


def _products(x: torch.Tensor) -> torch.Tensor:
    """All products of channels (P, C C) of x (P, C)."""
    return (x.unsqueeze(2) * x.unsqueeze(1)).flatten(1)


def _forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    outputs, channels, _ = weight.shape
    dtype = accumulation_dtype(x.dtype)
    weight = weight.to(dtype)
    if _are_few(len(x), outputs):
        return _multiply(_products(x.to(dtype)), weight.flatten(1).mT).to(x.dtype)
    output = x.new_empty(len(x), outputs)
    # (C, O C).
    matrices = weight.flatten(0, 1).mT
    for tile in _tiles(x, outputs):
        x_tile = x[tile].to(dtype)
        contracted = _multiply(x_tile, matrices).unflatten(1, (outputs, channels))
        output[tile] = _multiply(contracted, x_tile.unsqueeze(2)).squeeze(2)
    return output


def _grad_x(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    outputs, channels, _ = weight.shape
    dtype = accumulation_dtype(x.dtype)
    weight = weight.to(dtype)
    grad_x = x.new_empty(x.shape)
    if _are_few(len(x), outputs):
        grad_products = _multiply(grad.to(dtype), weight.flatten(1)).unflatten(1, (channels, channels))
        columns = x.to(dtype).unsqueeze(2)
        # The gradient of a product goes to each of its factors, times the other.
        return grad_x.copy_((_multiply(grad_products, columns) + _multiply(grad_products.mT, columns)).squeeze(2))
    matrices = (weight + weight.mT).flatten(0, 1).mT
    for tile in _tiles(x, outputs):
        contracted = _multiply(x[tile].to(dtype), matrices).unflatten(1, (outputs, channels))
        grad_x[tile] = _multiply(grad[tile].to(dtype).unsqueeze(1), contracted).squeeze(1)
    return grad_x


def _grad_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    outputs, channels = grad.shape[1], x.shape[1]
    dtype = accumulation_dtype(x.dtype)
    if _are_few(len(x), outputs):
        grad_weight = _multiply(grad.to(dtype).mT, _products(x.to(dtype)))
        return grad_weight.unflatten(1, (channels, channels)).to(x.dtype)
    grad_weight = x.new_zeros(outputs * channels, channels, dtype=dtype)
    for tile in _tiles(x, outputs):
        x_tile = x[tile].to(dtype)
        scaled = (grad[tile].to(dtype).unsqueeze(2) * x_tile.unsqueeze(1)).flatten(1)
        grad_weight.addmm_(scaled.mT, x_tile)
    return grad_weight.unflatten(0, (outputs, channels)).to(x.dtype)


quadratic_form_contracted = register_operators('contracted', _forward, _grad_x, _grad_weight)
