"""The quadratic form in bounded memory, on any device and dtype.

Products are formed one tile at a time, used in a matrix product while they are still in the cache, and forgotten;
backward forms them again. A tile is pixels-innermost, (pairs, pixels): every row is one product of two channels,
a long contiguous loop. Only the folded half of the products is computed (see `folded`).

The three computations are registered as torch operators, so that `torch.compile` sees each of them as one node.
"""

from typing import Iterator, List, NamedTuple, Tuple

import torch

from .dtypes import accumulation_dtype
from .folded import fold, unfold_grad

# Elements of the one tile of products that exists at a time. On a CPU it should stay in the last-level cache,
# elsewhere it should be large enough to hide the launch of a kernel. The rows of a tile should be long: each costs an
# operator call.
_CPU_TILE_ELEMENTS = 1 << 20
_DEVICE_TILE_ELEMENTS = 1 << 24
_TILE_PIXELS = 2048


class _PairBlock(NamedTuple):
    """Consecutive rows `start..stop` of the folded layout: the pairs at `pairs` of K."""
    start: int
    stop: int
    pairs: slice

    @property
    def size(self) -> int:
        return self.pairs.stop - self.pairs.start


def _plan(pixels: int, channels: int, device: torch.device) -> Tuple[int, List[_PairBlock]]:
    """Split the (pairs, pixels) plane into tiles: the pixels of a tile, and its blocks of pairs."""
    budget = _CPU_TILE_ELEMENTS if device.type == 'cpu' else _DEVICE_TILE_ELEMENTS
    # Few channels have few pairs, and then a longer tile fills the budget.
    pair_count = channels * (channels + 1) // 2
    tile_pixels = min(pixels, max(_TILE_PIXELS, budget // pair_count))
    max_pairs = budget // tile_pixels

    blocks = []
    start, first_pair, size = 0, 0, 0
    for row in range(channels):
        width = channels - row
        if size and size + width > max_pairs:
            blocks.append(_PairBlock(start, row, slice(first_pair, first_pair + size)))
            start, first_pair, size = row, first_pair + size, 0
        size += width
    blocks.append(_PairBlock(start, channels, slice(first_pair, first_pair + size)))
    return tile_pixels, blocks


def _tiles(tile_pixels: int, *tensors: torch.Tensor) -> Iterator[Tuple[torch.Tensor, ...]]:
    """Yield the same pixels of each (P, channels) tensor, as contiguous (channels, pixels)."""
    dtype = accumulation_dtype(tensors[0].dtype)
    for tile in zip(*(tensor.split(tile_pixels) for tensor in tensors)):
        yield tuple(pixels.t().to(dtype, memory_format=torch.contiguous_format) for pixels in tile)


def _rows(block: _PairBlock, tile: torch.Tensor, channels: int) -> Iterator[Tuple[int, torch.Tensor]]:
    """Yield each row `i` of a block with its part of a (pairs, pixels) tile: the pairs (i, i), ... (i, C - 1)."""
    offset = 0
    for row in range(block.start, block.stop):
        width = channels - row
        yield row, tile[offset:offset + width]
        offset += width


def _multiply_pairs(channels_tile: torch.Tensor, block: _PairBlock, buffer: torch.Tensor) -> torch.Tensor:
    """Write the products of a block into `buffer`; returns them as (pairs, pixels)."""
    products = buffer[:block.size * channels_tile.shape[1]].view(block.size, channels_tile.shape[1])
    for row, pairs in _rows(block, products, channels_tile.shape[0]):
        torch.mul(channels_tile[row:], channels_tile[row], out=pairs)
    return products


def _tile_buffer(like: torch.Tensor, tile_pixels: int, blocks: List[_PairBlock]) -> torch.Tensor:
    elements = tile_pixels * max(block.size for block in blocks)
    return like.new_empty(elements, dtype=accumulation_dtype(like.dtype))


@torch.library.custom_op('dit_timm::quadratic_chunked', mutates_args=())
def quadratic_form_chunked(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`q[p, o] = sum_ij weight[o, i, j] x[p, i] x[p, j]`, a tile of products at a time.

    Args:
        x: Inputs of shape (P, C), any strides, any floating dtype.
        weight: Weights of shape (O, C, C), dtype and device of `x`.

    Returns:
        Outputs of shape (P, O), contiguous, dtype of `x`; summed in float32 (float64 for float64 inputs).
    """
    pixels, channels = x.shape
    output = x.new_empty(pixels, weight.shape[0])
    if pixels == 0:
        return output
    folded = fold(weight.to(accumulation_dtype(x.dtype)))
    tile_pixels, blocks = _plan(pixels, channels, x.device)
    buffer = _tile_buffer(x, tile_pixels, blocks)
    for (x_tile,), output_tile in zip(_tiles(tile_pixels, x), output.split(tile_pixels)):
        sums = x_tile.new_zeros(weight.shape[0], x_tile.shape[1])
        for block in blocks:
            sums.addmm_(folded[:, block.pairs], _multiply_pairs(x_tile, block, buffer))
        output_tile.copy_(sums.t())
    return output


@torch.library.custom_op('dit_timm::quadratic_chunked_grad_x', mutates_args=())
def _grad_x(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`dx[p, i] = sum_o grad[p, o] sum_j (weight[o, i, j] + weight[o, j, i]) x[p, j]`, shape (P, C)."""
    pixels, channels = x.shape
    output = x.new_empty(pixels, channels)
    if pixels == 0:
        return output
    folded = fold(weight.to(accumulation_dtype(x.dtype)))
    tile_pixels, blocks = _plan(pixels, channels, x.device)
    buffer = _tile_buffer(x, tile_pixels, blocks)
    for (grad_tile, x_tile), output_tile in zip(_tiles(tile_pixels, grad, x), output.split(tile_pixels)):
        sums = torch.zeros_like(x_tile)
        for block in blocks:
            # The gradient of every product of the block, (pairs, pixels).
            grad_products = buffer[:block.size * x_tile.shape[1]].view(block.size, x_tile.shape[1])
            torch.mm(folded[:, block.pairs].t(), grad_tile, out=grad_products)
            for row, pairs in _rows(block, grad_products, channels):
                sums[row:].addcmul_(pairs, x_tile[row])
                sums[row] += pairs.mul_(x_tile[row:]).sum(0)
        output_tile.copy_(sums.t())
    return output


@torch.library.custom_op('dit_timm::quadratic_chunked_grad_weight', mutates_args=())
def _grad_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`dweight[o, i, j] = sum_p grad[p, o] x[p, i] x[p, j]`, shape (O, C, C), summed over all pixels in float32."""
    pixels, channels = x.shape
    if pixels == 0:
        return x.new_zeros(grad.shape[1], channels, channels)
    tile_pixels, blocks = _plan(pixels, channels, x.device)
    buffer = _tile_buffer(x, tile_pixels, blocks)
    folded_grad = buffer.new_zeros(grad.shape[1], blocks[-1].pairs.stop)
    for grad_tile, x_tile in _tiles(tile_pixels, grad, x):
        for block in blocks:
            folded_grad[:, block.pairs].addmm_(grad_tile, _multiply_pairs(x_tile, block, buffer).t())
    return unfold_grad(folded_grad.to(x.dtype), channels)


@quadratic_form_chunked.register_fake
def _(x, weight):
    return x.new_empty(x.shape[0], weight.shape[0])


@_grad_x.register_fake
def _(grad, x, weight):
    return x.new_empty(x.shape)


@_grad_weight.register_fake
def _(grad, x):
    return x.new_empty(grad.shape[1], x.shape[1], x.shape[1])


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    grad_x = _grad_x(grad, x, weight) if ctx.needs_input_grad[0] else None
    grad_weight = _grad_weight(grad, x) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight


quadratic_form_chunked.register_autograd(_backward, setup_context=_setup_context)
