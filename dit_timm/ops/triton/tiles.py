"""Tiles of the Triton kernels, and how the work of a kernel is shared among programs.

Imported when first needed, as `kernels`. Not by `triton.cdiv`, which takes microseconds at every launch.
"""

import functools
import math
from typing import Any, Dict, NamedTuple, Tuple

import torch
import triton

# Programs of the gradient of the weights: enough for every multiprocessor of a large GPU to have two. They share
# the pixels, at the price of partial sums, of which there is a limited number of elements.
_PROGRAMS = 264
_PARTIAL_ELEMENTS = 1 << 24


class Tile(NamedTuple):
    """A tile of a kernel.

    Attributes:
        sizes: PIXELS, COLUMNS or PAIRS, and OUTPUTS with TAIL, see `_output_sizes`.
        num_warps: Warps of a program.
        num_stages: Loads in flight.
    """
    sizes: Dict[str, int]
    num_warps: int
    num_stages: int

    @property
    def outputs(self) -> int:
        """Outputs of a program."""
        return self.sizes['OUTPUTS'] + self.sizes['TAIL']

    @property
    def options(self) -> Dict[str, Any]:
        """Keyword arguments of a launch."""
        return {**self.sizes, 'num_warps': self.num_warps, 'num_stages': self.num_stages}


def _output_sizes(outputs: int, most: int = 128) -> Dict[str, int]:
    """Sizes of a tile of outputs: one, or two next to each other where they leave less of the tile empty.

    Tiles are powers of two, and at least what matrix units take: 96 outputs, those of ConvNeXt's first stage, would
    leave a quarter of 128 empty, and are 64 and 32.
    """
    size = min(most, max(16, triton.next_power_of_2(outputs)))
    if size > 32 and outputs <= size * 3 // 4:
        return dict(OUTPUTS=size // 2, TAIL=size // 4)
    return dict(OUTPUTS=size, TAIL=0)


# Tiles: large enough to keep matrix units busy, small enough for the registers (float32 without matrix units needs
# the most) and for the 99 KiB of shared memory that a program may have on the smallest GPUs. Those of bfloat16 were the
# fastest of a dozen on an H200, at 64 maps of 56 x 56 pixels with 96 and with 128 channels; the others are reasoned.
# A launch of a small form waits for the choice: it is made once.

@functools.cache
def forward_tile(operand: torch.dtype, precision: str, outputs: int) -> Tile:
    """Tile of `forward_kernel`."""
    if operand == torch.float32 and precision == 'ieee':
        return Tile(dict(PIXELS=64, COLUMNS=32, **_output_sizes(outputs, 64)), num_warps=4, num_stages=2)
    num_warps = 4 if operand == torch.bfloat16 else 8
    return Tile(dict(PIXELS=128, COLUMNS=32, **_output_sizes(outputs)), num_warps=num_warps, num_stages=3)


@functools.cache
def grad_x_tile(operand: torch.dtype, precision: str, outputs: int) -> Tile:
    """Tile of `grad_x_kernel`."""
    if operand == torch.float32:
        return Tile(dict(PIXELS=64, COLUMNS=32, **_output_sizes(outputs, 64)), num_warps=4, num_stages=2)
    return Tile(dict(PIXELS=128, COLUMNS=32, **_output_sizes(outputs)), num_warps=8, num_stages=3)


@functools.cache
def grad_weight_tile(operand: torch.dtype, precision: str, outputs: int) -> Tile:
    """Tile of `grad_weight_kernel`."""
    if operand == torch.float32 and precision == 'ieee':
        return Tile(dict(PIXELS=32, PAIRS=64, **_output_sizes(outputs, 64)), num_warps=4, num_stages=2)
    if operand == torch.float32:
        return Tile(dict(PIXELS=32, PAIRS=128, **_output_sizes(outputs)), num_warps=8, num_stages=2)
    if outputs > 96:
        return Tile(dict(PIXELS=64, PAIRS=256, **_output_sizes(outputs)), num_warps=8, num_stages=3)
    return Tile(dict(PIXELS=64, PAIRS=64, **_output_sizes(outputs)), num_warps=4, num_stages=3)


def split_pixels(tile: Tile, pixels: int, pairs: int, outputs: int) -> Tuple[int, int]:
    """How many splits of the pixels `grad_weight_kernel` sums apart, and the pixels of each, whole tiles."""
    programs = math.ceil(pairs / tile.sizes['PAIRS']) * math.ceil(outputs / tile.outputs)
    tiles = math.ceil(pixels / tile.sizes['PIXELS'])
    splits = min(math.ceil(_PROGRAMS / programs), _PARTIAL_ELEMENTS // (pairs * outputs), tiles)
    size = math.ceil(tiles / max(1, splits)) * tile.sizes['PIXELS']
    return math.ceil(pixels / size), size
