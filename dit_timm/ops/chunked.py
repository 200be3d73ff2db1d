"""The quadratic form in plain torch, in bounded memory, on any device and dtype.

Products are formed one tile at a time, used in a matrix product while they are still in the cache, and forgotten;
backward forms them again. A tile is a block of rows of the matrix of pairs at some pixels, (lanes, pairs, pixels):

- pixels are innermost, so that a product of two channels is one long contiguous loop;
- lanes are as many as threads: the batched matrix product then gives each thread the lane whose products it formed;
- row i of the matrix of pairs starts at the diagonal, up to a block of rows (see `_Block`).
"""

from typing import Iterator, List, NamedTuple, Tuple

import torch

from .dtypes import accumulation_dtype, operand_dtype
from .operators import register_operators

# Elements of the one tile of products that exists at a time. On a CPU those of a lane should stay in the second-level
# cache of a core, elsewhere the tile should be large enough to hide the launch of a kernel.
_CPU_LANE_ELEMENTS = 1 << 17
_DEVICE_TILE_ELEMENTS = 1 << 24
# The gradient of the weights is summed in each lane on its own.
_MAX_LANES = 16
# Rows of a block: more of them compute more products twice, fewer cost more operator calls.
_BLOCK_ROWS = 8


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
        """Views of x (lanes, C, pixels) whose broadcast product is (lanes, rows, columns, pixels)."""
        return x[:, self.start:self.stop, None], x[:, None, self.start:]


class _Plan:
    """How the plane of pairs and pixels is cut into tiles, and the memory for one of them."""

    def __init__(self, x: torch.Tensor):
        self.pixels, channels = x.shape
        self.dtype = operand_dtype(x.device, x.dtype)
        self.blocks = [
            _Block(start, min(start + _BLOCK_ROWS, channels), channels) for start in range(0, channels, _BLOCK_ROWS)
        ]
        if x.device.type == 'cpu':
            self.lanes, elements = min(torch.get_num_threads(), _MAX_LANES, self.pixels), _CPU_LANE_ELEMENTS
        else:
            self.lanes, elements = 1, _DEVICE_TILE_ELEMENTS
        # Tiles of equal size; the last is filled up with zeros.
        lane_pixels = -(-self.pixels // self.lanes)
        tiles = -(-lane_pixels // max(1, elements // self.blocks[0].pairs))
        self.tile_pixels = -(-lane_pixels // tiles)
        self.buffer = x.new_empty(self.lanes * self.blocks[0].pairs * self.tile_pixels, dtype=self.dtype)

    def fold(self, weight: torch.Tensor) -> List[torch.Tensor]:
        """Weights of each block's pairs, (O, pairs), summed before they are rounded."""
        weight = weight.to(accumulation_dtype(weight.dtype))
        return [block.fold(weight).to(self.dtype) for block in self.blocks]

    def tile(self, block: _Block) -> torch.Tensor:
        """The shared memory as (lanes, rows, columns, pixels)."""
        shape = (self.lanes, *block.shape, self.tile_pixels)
        return self.buffer[:self.lanes * block.pairs * self.tile_pixels].view(shape)

    def multiply(self, x: torch.Tensor, block: _Block) -> torch.Tensor:
        """The products of a block from x (lanes, C, pixels), shape (lanes, pairs, pixels)."""
        rows, columns = block.factors(x)
        return torch.mul(rows, columns, out=self.tile(block)).flatten(1, 2)

    def load(self, *tensors: torch.Tensor) -> Iterator[Tuple[slice, Tuple[torch.Tensor, ...]]]:
        """Yield each slice of pixels with that part of every (P, channels) tensor as (lanes, channels, pixels)."""
        step = self.lanes * self.tile_pixels
        for start in range(0, self.pixels, step):
            part = slice(start, min(start + step, self.pixels))
            yield part, tuple(self._to_lanes(tensor[part], step) for tensor in tensors)

    def _to_lanes(self, tensor: torch.Tensor, step: int) -> torch.Tensor:
        if tensor.shape[0] < step:
            tensor = torch.cat([tensor, tensor.new_zeros(step - tensor.shape[0], tensor.shape[1])])
        lanes = tensor.unflatten(0, (self.lanes, self.tile_pixels)).mT
        return lanes.to(self.dtype).contiguous()


def _from_lanes(lanes: torch.Tensor, output: torch.Tensor) -> None:
    """Write (lanes, channels, pixels) to output (P, channels), which may have fewer pixels."""
    output.copy_(lanes.mT.flatten(0, 1)[:output.shape[0]])


def _add_product(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`sums += left @ right`, batched; sums in their own, possibly wider dtype."""
    if sums.dtype == left.dtype:
        sums.baddbmm_(left, right)
    else:
        sums += torch.bmm(left, right)


def _forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    output = x.new_empty(x.shape[0], weight.shape[0])
    if output.numel() == 0 or x.shape[1] == 0:
        return output.zero_()
    plan = _Plan(x)
    folded = [weights.expand(plan.lanes, -1, -1) for weights in plan.fold(weight)]
    for part, (x_tile,) in plan.load(x):
        sums = x_tile.new_zeros(plan.lanes, weight.shape[0], plan.tile_pixels, dtype=accumulation_dtype(x.dtype))
        for block, weights in zip(plan.blocks, folded):
            _add_product(sums, weights, plan.multiply(x_tile, block))
        _from_lanes(sums, output[part])
    return output


def _grad_x(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    output = x.new_empty(x.shape)
    if output.numel() == 0 or grad.shape[1] == 0:
        return output.zero_()
    plan = _Plan(x)
    folded = [weights.mT.expand(plan.lanes, -1, -1) for weights in plan.fold(weight)]
    scratch = torch.empty_like(plan.buffer)
    for part, (grad_tile, x_tile) in plan.load(grad, x):
        sums = torch.zeros_like(x_tile, dtype=accumulation_dtype(x.dtype))
        for block, weights in zip(plan.blocks, folded):
            grad_products = plan.tile(block)
            torch.bmm(weights, grad_tile, out=grad_products.flatten(1, 2))
            # The gradient of a product goes to each of its factors, times the other.
            rows, columns = block.factors(x_tile)
            to_columns = torch.mul(grad_products, rows, out=scratch[:grad_products.numel()].view(grad_products.shape))
            sums[:, block.start:] += to_columns.sum(1, dtype=sums.dtype)
            sums[:, block.start:block.stop] += grad_products.mul_(columns).sum(2, dtype=sums.dtype)
        _from_lanes(sums, output[part])
    return output


def _grad_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    output = x.new_zeros(grad.shape[1], x.shape[1], x.shape[1])
    if output.numel() == 0 or x.shape[0] == 0:
        return output
    plan = _Plan(x)
    sums: List[torch.Tensor] = [
        x.new_zeros(plan.lanes, grad.shape[1], block.pairs, dtype=accumulation_dtype(x.dtype))
        for block in plan.blocks
    ]
    for _, (grad_tile, x_tile) in plan.load(grad, x):
        for block, block_sums in zip(plan.blocks, sums):
            _add_product(block_sums, grad_tile, plan.multiply(x_tile, block).mT)
    for block, block_sums in zip(plan.blocks, sums):
        block.unfold(block_sums.sum(0).to(x.dtype), output)
    return output


quadratic_form_chunked = register_operators('chunked', _forward, _grad_x, _grad_weight)
