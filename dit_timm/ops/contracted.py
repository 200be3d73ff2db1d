"""The quadratic form as x . (A x): on a CPU the fastest where there are few outputs, as of one neuron.

Matrix products of x and the weights in plain torch, without products of channels. This takes twice the arithmetic of
the other backends, and pays where those spend theirs on the products, of which there are as many for one output as for
many. All sums are at least float32.
"""

from typing import Dict, Iterator, NamedTuple

import torch

from .operators import register_operators
from .precision import accumulation_dtype

# Elements of A x of the pixels that are computed at a time: in the second-level cache of a CPU's core, elsewhere enough
# to hide the launch of a kernel. Pixels of a matrix product, whatever they take.
_CPU_TILE_ELEMENTS = 1 << 18
_DEVICE_TILE_ELEMENTS = 1 << 24
_MIN_TILE_PIXELS = 16


class _Few(NamedTuple):
    """Up to how many outputs it is faster than a backend, from how many channels on."""
    outputs: int
    channels: int


# Measured in float32, and chunked in float64, on a CPU with AVX-512 (hub/results/benchmark_cpu_op_few.csv and
# benchmark_cpu_op_few_float64.csv). Extrapolated: half precision, other CPUs.
_FEW: Dict[str, _Few] = {'native': _Few(2, 96), 'chunked': _Few(8, 1)}


def is_contracted_faster(backend: str, channels: int, outputs: int) -> bool:
    """Whether the contracted form is faster on a CPU than a backend.

    Args:
        backend: The backend's name.
        channels: Channels of x.
        outputs: Outputs.
    """
    few = _FEW.get(backend)
    return few is not None and channels >= few.channels and outputs <= few.outputs


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


def _forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    outputs, channels, _ = weight.shape
    output = x.new_empty(x.shape[0], outputs)
    dtype = accumulation_dtype(x.dtype)
    # (C, O C).
    matrices = weight.to(dtype).flatten(0, 1).mT
    for tile in _tiles(x, outputs):
        x_tile = x[tile].to(dtype)
        contracted = _multiply(x_tile, matrices).unflatten(1, (outputs, channels))
        output[tile] = _multiply(contracted, x_tile.unsqueeze(2)).squeeze(2)
    return output


def _grad_x(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    outputs, channels, _ = weight.shape
    grad_x = x.new_empty(x.shape)
    dtype = accumulation_dtype(x.dtype)
    weight = weight.to(dtype)
    matrices = (weight + weight.mT).flatten(0, 1).mT
    for tile in _tiles(x, outputs):
        contracted = _multiply(x[tile].to(dtype), matrices).unflatten(1, (outputs, channels))
        grad_x[tile] = _multiply(grad[tile].to(dtype).unsqueeze(1), contracted).squeeze(1)
    return grad_x


def _grad_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    outputs, channels = grad.shape[1], x.shape[1]
    dtype = accumulation_dtype(x.dtype)
    grad_weight = x.new_zeros(outputs * channels, channels, dtype=dtype)
    for tile in _tiles(x, outputs):
        x_tile = x[tile].to(dtype)
        scaled = (grad[tile].to(dtype).unsqueeze(2) * x_tile.unsqueeze(1)).flatten(1)
        grad_weight.addmm_(scaled.mT, x_tile)
    return grad_weight.unflatten(0, (outputs, channels)).to(x.dtype)


quadratic_form_contracted = register_operators('contracted', _forward, _grad_x, _grad_weight)
