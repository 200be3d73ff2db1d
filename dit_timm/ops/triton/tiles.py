"""How the work of the Triton kernels is shared among programs: tiles, grids and splits of the pixels.

Imported when first needed, as `kernels`. Not by `triton.cdiv`, which takes microseconds at every launch.
"""

import math
from typing import Any, Dict, NamedTuple, Tuple

import torch
import triton

from . import layouts

# Channels of a side of the blocks of pairs: of the folded weights, and of the gradient of the weights.
SIDE, GRAD_SIDE = 8, 16
# From so many pixels on every multiprocessor of a large GPU has several tiles of twice the pixels, for each of which
# the weights are read once.
_MANY_PIXELS = 1 << 17
# Channels of a program of the gradient of x. Its sums stay in registers.
_MAX_CHANNELS = 128
# Programs of the gradient of the weights: two for every multiprocessor of a large GPU. They share the pixels, at the
# price of partial sums, of which there is a limited number of elements.
_PROGRAMS = 264
_PARTIAL_ELEMENTS = 1 << 24
# Pixels of the inner of the two loops of `grad_weight_kernel`.
_PART = 1 << 12


class Tile(NamedTuple):
    """A tile of a kernel.

    Attributes:
        sizes: The kernel's constants in upper case, OUTPUTS with TAIL as in `_output_sizes`.
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


# Tiles: large enough to keep matrix units busy and to read the weights few times, small enough for the registers (none
# of these spills), and for the 99 KiB of shared memory that a program may have on the smallest GPUs. Reasoned from the
# machine code of Triton 3.8, not measured. `hopper` are GPUs of compute capability 9 and later, whose matrix units read
# one operand from shared memory: that leaves registers for larger tiles.

def forward_tile(operand: torch.dtype, precision: str, hopper: bool, pixels: int, outputs: int) -> Tile:
    """Tile of `forward_kernel`."""
    if operand == torch.float32 and precision == 'ieee':
        sizes = dict(PIXELS=64, SIDE=SIDE, ROWS=SIDE // 2, **_output_sizes(outputs, 64))
        return Tile(sizes, num_warps=4, num_stages=2)
    sizes = dict(PIXELS=128, SIDE=SIDE, ROWS=SIDE, **_output_sizes(outputs))
    if operand == torch.float32:
        return Tile(sizes, num_warps=8, num_stages=2)
    if not hopper:
        return Tile(sizes, num_warps=8, num_stages=3)
    if pixels >= _MANY_PIXELS:
        return Tile({**sizes, 'PIXELS': 256}, num_warps=8, num_stages=3)
    return Tile(sizes, num_warps=4, num_stages=3)


def grad_x_tile(operand: torch.dtype, precision: str, hopper: bool, channels: int, outputs: int) -> Tile:
    """Tile of `grad_x_kernel`."""
    channels = min(_MAX_CHANNELS, max(2 * SIDE, triton.next_power_of_2(channels)))
    sizes = dict(SIDE=SIDE, CHANNELS=channels)
    if operand == torch.float32 and precision == 'ieee':
        return Tile(dict(PIXELS=32, **sizes, **_output_sizes(outputs, 32)), num_warps=8, num_stages=2)
    output_sizes = _output_sizes(outputs, 128 if operand == torch.bfloat16 else 64)
    if not hopper:
        # Registers do for one tile of outputs.
        output_sizes = dict(OUTPUTS=triton.next_power_of_2(sum(output_sizes.values())), TAIL=0)
        return Tile(dict(PIXELS=64, **sizes, **output_sizes), num_warps=8, num_stages=2)
    num_stages = 3 if operand == torch.bfloat16 else 2
    return Tile(dict(PIXELS=128, **sizes, **output_sizes), num_warps=8, num_stages=num_stages)


def grad_weight_tile(operand: torch.dtype, precision: str, hopper: bool, outputs: int) -> Tile:
    """Tile of `grad_weight_kernel`."""
    most = 64 if operand == torch.float32 and precision == 'ieee' else 128
    sizes = dict(PART=_PART, SIDE=GRAD_SIDE, **_output_sizes(outputs, most))
    if operand == torch.float32:
        return Tile(dict(PIXELS=32, **sizes), num_warps=8, num_stages=2)
    return Tile(dict(PIXELS=64 if hopper else 32, **sizes), num_warps=8, num_stages=3)


def split_pixels(tile: Tile, pixels: int, channels: int, outputs: int) -> Tuple[int, int]:
    """How many splits of the pixels `grad_weight_kernel` sums apart, and the pixels of each, whole tiles."""
    blocks = layouts.block_count(channels, GRAD_SIDE)
    programs = blocks * math.ceil(outputs / tile.outputs)
    tiles = math.ceil(pixels / tile.sizes['PIXELS'])
    splits = min(_PROGRAMS // programs, _PARTIAL_ELEMENTS // (blocks * GRAD_SIDE ** 2 * outputs), tiles)
    size = math.ceil(tiles / max(1, splits)) * tile.sizes['PIXELS']
    return math.ceil(pixels / size), size
