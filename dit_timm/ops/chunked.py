"""The quadratic form in plain torch, in bounded memory, on any device and dtype.

Products are computed one tile at a time, used in a matrix product while they are still in the cache, and discarded;
backward recomputes them. A tile is a block of rows of the matrix of pairs at some pixels, (pairs, pixels):

- pixels are innermost, so that a product of two channels is one long contiguous loop;
- row i of the matrix of pairs starts at the diagonal, up to a block of rows (see `_Block`).

On a CPU the pixels are divided among as many lanes as torch has threads. A lane is a Python thread whose operators run
single-threaded, from its first tile to its last. Multi-threaded operators on small tiles would synchronise all threads
thousands of times, each time at the pace of the thread that another process keeps from its core.
"""

import functools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator, List, NamedTuple, Tuple, TypeVar

import torch

from .operators import register_operators
from .precision import accumulation_dtype, operand_dtype

# Elements of the one tile of products that a lane has at a time. On a CPU it should stay in the second-level cache of a
# core, elsewhere it should be large enough to hide the launch of a kernel.
_CPU_LANE_ELEMENTS = 1 << 17
_DEVICE_TILE_ELEMENTS = 1 << 24
# The gradient of the weights is summed in each lane on its own.
_MAX_LANES = 16
# Fewer take less time than to wake a thread.
_MIN_LANE_PIXELS = 32
# Rows of a block: more rows compute more products twice, fewer cost more operator calls.
_BLOCK_ROWS = 8

_Result = TypeVar('_Result')


class _Block(NamedTuple):
    """The pairs of channels (i, j) with start <= i < stop, j >= start.

    Of two channels in `start..stop` both pairs, (i, j) and (j, i), are in the block; of others one is.
    """
    start: int
    stop: int
    channels: int

    @property
    def shape(self) -> Tuple[int, int]:
        return self.stop - self.start, self.channels - self.start

    @property
    def pairs(self) -> int:
        rows, columns = self.shape
        return rows * columns

    def fold(self, weight: torch.Tensor) -> torch.Tensor:
        """Weights of the block's pairs from weights (O, C, C), shape (O, pairs)."""
        folded = weight[:, self.start:self.stop, self.start:].clone(memory_format=torch.contiguous_format)
        folded[:, :, self.stop - self.start:] += weight[:, self.stop:, self.start:self.stop].mT
        return folded.flatten(1)

    def unfold(self, folded: torch.Tensor, weight: torch.Tensor) -> None:
        """The gradient of `fold`: write (O, pairs) to where `fold` reads in weight (O, C, C)."""
        folded = folded.unflatten(1, self.shape)
        weight[:, self.start:self.stop, self.start:] = folded
        weight[:, self.stop:, self.start:self.stop] = folded[:, :, self.stop - self.start:].mT

    def factors(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Views of x (C, pixels) whose broadcast product is (rows, columns, pixels)."""
        return x[self.start:self.stop, None], x[None, self.start:]

    def tile(self, memory: torch.Tensor, pixels: int) -> torch.Tensor:
        """The front of some memory as (rows, columns, pixels)."""
        return memory[:self.pairs * pixels].view(*self.shape, pixels)

    def multiply(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """The products of the block from x (C, pixels), shape (pairs, pixels), in some memory."""
        return torch.mul(*self.factors(x), out=self.tile(memory, x.shape[1])).flatten(0, 1)


class _Plan:
    """The tiling of pairs and pixels: blocks of pairs, and lanes and tiles of pixels.

    Attributes:
        blocks: The blocks.
        lanes: The pixels of each lane.
        tile_pixels: Pixels of a tile, at most.
    """

    def __init__(self, x: torch.Tensor):
        pixels, channels = x.shape
        self.dtype = operand_dtype(x.device, x.dtype)
        self.blocks = [
            _Block(start, min(start + _BLOCK_ROWS, channels), channels) for start in range(0, channels, _BLOCK_ROWS)
        ]
        count, elements = 1, _DEVICE_TILE_ELEMENTS
        if x.device.type == 'cpu':
            count = max(1, min(torch.get_num_threads(), _MAX_LANES, pixels // _MIN_LANE_PIXELS))
            elements = _CPU_LANE_ELEMENTS
        self.lanes = [slice(pixels * lane // count, pixels * (lane + 1) // count) for lane in range(count)]
        # Tiles of about equal size.
        lane_pixels = math.ceil(pixels / count)
        tiles = math.ceil(lane_pixels / max(1, elements // self.blocks[0].pairs))
        self.tile_pixels = math.ceil(lane_pixels / tiles)

    @property
    def tile_elements(self) -> int:
        """Elements of the memory for one tile."""
        return self.blocks[0].pairs * self.tile_pixels

    def fold(self, weight: torch.Tensor) -> List[torch.Tensor]:
        """Weights of each block's pairs, (O, pairs), summed before they are rounded."""
        weight = weight.to(accumulation_dtype(weight.dtype))
        return [block.fold(weight).to(self.dtype) for block in self.blocks]

    def load(self, lane: slice, *tensors: torch.Tensor) -> Iterator[Tuple[slice, Tuple[torch.Tensor, ...]]]:
        """Yield each tile of a lane with that part of every (P, channels) tensor as (channels, pixels)."""
        for start in range(lane.start, lane.stop, self.tile_pixels):
            tile = slice(start, min(start + self.tile_pixels, lane.stop))
            yield tile, tuple(tensor[tile].mT.to(self.dtype).contiguous() for tensor in tensors)

    def run(self, compute: Callable[[slice], _Result]) -> List[_Result]:
        """Compute all lanes in parallel; returns their results in order."""
        if len(self.lanes) == 1:
            return [compute(self.lanes[0])]
        inference = torch.is_inference_mode_enabled()

        def alone(lane: slice) -> _Result:
            # A thread has modes of its own; these are the ones in which torch calls an operator.
            with torch.inference_mode(inference), torch._C._AutoDispatchBelowAutograd():
                return compute(lane)

        return list(_threads(len(self.lanes)).map(alone, self.lanes))


def _work_alone() -> None:
    """Run the operators of this thread single-threaded."""
    # A thread inherits the number that was set last when it first reads it, so it has to read before it sets.
    torch.get_num_threads()
    torch.set_num_threads(1)


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Python threads whose operators run single-threaded."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, 'quadratic_form', initializer=_work_alone)
    # All start now: the barrier keeps each until the last has started.
    started = threading.Barrier(count)
    list(pool.map(lambda _: started.wait(), range(count)))
    # The number of threads belongs to each thread, but what a thread set last is what new threads begin with.
    torch.set_num_threads(before)
    return pool


if hasattr(os, 'register_at_fork'):
    # Threads do not survive a fork.
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _add_product(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`sums += left @ right`; sums in their own, possibly wider dtype."""
    if sums.dtype == left.dtype:
        sums.addmm_(left, right)
    else:
        sums += torch.mm(left, right)


def _forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    output = x.new_empty(x.shape[0], weight.shape[0])
    if output.numel() == 0 or x.shape[1] == 0:
        return output.zero_()
    plan = _Plan(x)
    folded = plan.fold(weight)

    def compute(lane: slice) -> None:
        memory = x.new_empty(plan.tile_elements, dtype=plan.dtype)
        for tile, (x_tile,) in plan.load(lane, x):
            sums = x_tile.new_zeros(weight.shape[0], x_tile.shape[1], dtype=accumulation_dtype(x.dtype))
            for block, weights in zip(plan.blocks, folded):
                _add_product(sums, weights, block.multiply(x_tile, memory))
            output[tile] = sums.mT

    plan.run(compute)
    return output


def _grad_x(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    output = x.new_empty(x.shape)
    if output.numel() == 0 or grad.shape[1] == 0:
        return output.zero_()
    plan = _Plan(x)
    folded = [weights.mT for weights in plan.fold(weight)]

    def compute(lane: slice) -> None:
        memory, scratch = (x.new_empty(plan.tile_elements, dtype=plan.dtype) for _ in range(2))
        for tile, (grad_tile, x_tile) in plan.load(lane, grad, x):
            sums = torch.zeros_like(x_tile, dtype=accumulation_dtype(x.dtype))
            for block, weights in zip(plan.blocks, folded):
                grad_products = block.tile(memory, x_tile.shape[1])
                torch.mm(weights, grad_tile, out=grad_products.flatten(0, 1))
                # The gradient of a product goes to each of its factors, times the other.
                rows, columns = block.factors(x_tile)
                to_columns = torch.mul(grad_products, rows, out=block.tile(scratch, x_tile.shape[1]))
                sums[block.start:] += to_columns.sum(0, dtype=sums.dtype)
                sums[block.start:block.stop] += grad_products.mul_(columns).sum(1, dtype=sums.dtype)
            output[tile] = sums.mT

    plan.run(compute)
    return output


def _grad_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    output = x.new_zeros(grad.shape[1], x.shape[1], x.shape[1])
    if output.numel() == 0 or x.shape[0] == 0:
        return output
    plan = _Plan(x)

    def compute(lane: slice) -> List[torch.Tensor]:
        memory = x.new_empty(plan.tile_elements, dtype=plan.dtype)
        sums = [
            x.new_zeros(grad.shape[1], block.pairs, dtype=accumulation_dtype(x.dtype)) for block in plan.blocks
        ]
        for _, (grad_tile, x_tile) in plan.load(lane, grad, x):
            for block, block_sums in zip(plan.blocks, sums):
                _add_product(block_sums, grad_tile, block.multiply(x_tile, memory).mT)
        return sums

    for block, lane_sums in zip(plan.blocks, zip(*plan.run(compute))):
        block.unfold(functools.reduce(torch.add, lane_sums).to(x.dtype), output)
    return output


quadratic_form_chunked = register_operators('chunked', _forward, _grad_x, _grad_weight)
