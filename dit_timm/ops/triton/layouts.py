"""From weights to the order in which the Triton kernels read them, and back, in one launch each.

That order, "folded": the pairs of channels in square blocks of SIDE rows and SIDE columns, only the blocks on and above
the diagonal. Block (i, j) of rows and columns is number j (j + 1) / 2 + i, and row-major inside. Both weights of a pair
are one, their sum; below the diagonal, in the blocks that it crosses, and outside the channels there is zero. Outputs
are contiguous: a block is a contiguous matrix (SIDE * SIDE, O).

Imported when first needed, as `kernels`.
"""

# Triton's types say constexpr of constants, which are numbers where a kernel is launched.
# pyright: reportArgumentType=false, reportIndexIssue=false

import math

import torch
import triton
import triton.language as tl

# Sides of a tile that is read along one side and written along the other.
_OUTPUTS, _COLUMNS = 32, 32


def block_count(channels: int, side: int) -> int:
    """Blocks on and above the diagonal."""
    blocks = math.ceil(channels / side)
    return blocks * (blocks + 1) // 2


@triton.jit
def _fold_kernel(
        weight, folded, output_stride, row_stride, column_stride, channel_count, output_count,
        SIDE: tl.constexpr, OUTPUTS: tl.constexpr,
):
    """weight (O, C, C) -> folded; a program for a block and a tile of outputs."""
    block_row, block_column = tl.program_id(0), tl.program_id(1)
    if block_row > block_column:
        return
    pairs = tl.arange(0, SIDE * SIDE)[:, None]
    outputs = (tl.program_id(2) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)[None, :]
    rows = (block_row * SIDE + pairs // SIDE).to(tl.int64)
    columns = (block_column * SIDE + pairs % SIDE).to(tl.int64)
    inside = (columns < channel_count) & (outputs < output_count)
    matrices = weight + outputs * output_stride
    weights = tl.load(matrices + rows * row_stride + columns * column_stride, mask=inside & (rows <= columns), other=0.)
    mirrored = tl.load(matrices + columns * row_stride + rows * column_stride, mask=inside & (rows < columns), other=0.)
    block = (block_column * (block_column + 1) // 2 + block_row).to(tl.int64)
    to = folded + (block * (SIDE * SIDE) + pairs) * output_count + outputs
    sums = weights.to(tl.float32) + mirrored.to(tl.float32)
    tl.store(to, sums.to(folded.dtype.element_ty), mask=outputs < output_count)


@triton.jit(do_not_specialize=('splits',))
def _unfold_kernel(
        partial_grad, grad, splits, channel_count, output_count,
        SIDE: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr,
):
    """partial_grad (splits, pairs, O) -> grad (O, C, C), the sum over the splits, for both orders of a pair."""
    row = tl.program_id(0).to(tl.int64)
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    outputs = (tl.program_id(2) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    first, second = tl.minimum(row, columns), tl.maximum(row, columns)
    blocks = (second // SIDE) * (second // SIDE + 1) // 2 + first // SIDE
    pairs = (blocks * SIDE + first % SIDE) * SIDE + second % SIDE
    # A size of 1 is a constant, which has no `to`.
    side_blocks = tl.cast(tl.cdiv(channel_count, SIDE), tl.int64)
    pair_count = side_blocks * (side_blocks + 1) // 2 * (SIDE * SIDE)
    inside = (columns < channel_count)[:, None] & (outputs < output_count)[None, :]
    offsets = pairs[:, None] * output_count + outputs[None, :]
    sums = tl.zeros((COLUMNS, OUTPUTS), tl.float32)
    for split in range(0, splits):
        sums += tl.load(partial_grad + split * pair_count * output_count + offsets, mask=inside, other=0.)
    to = grad + (outputs[:, None] * channel_count + row) * channel_count + columns[None, :]
    tl.store(to, sums.T.to(grad.dtype.element_ty), mask=inside.T)


def folded(weight: torch.Tensor, dtype: torch.dtype, side: int) -> torch.Tensor:
    """Weights (O, C, C), any strides, -> the folded weights (pairs, O); summed in float32, then rounded to a dtype."""
    outputs, channels, _ = weight.shape
    output_stride, row_stride, column_stride = weight.stride()
    result = weight.new_empty(block_count(channels, side) * side ** 2, outputs, dtype=dtype)
    blocks = math.ceil(channels / side)
    _fold_kernel[blocks, blocks, math.ceil(outputs / _OUTPUTS)](
        weight, result, output_stride, row_stride, column_stride, channels, outputs, SIDE=side, OUTPUTS=_OUTPUTS,
    )
    return result


def unfolded(partial_grad: torch.Tensor, channels: int, dtype: torch.dtype, side: int) -> torch.Tensor:
    """Gradients of folded weights (splits, pairs, O) -> their sum over the splits (O, C, C).

    Both weights of a pair receive the gradient of their sum.
    """
    splits, _, outputs = partial_grad.shape
    grad = partial_grad.new_empty(outputs, channels, channels, dtype=dtype)
    _unfold_kernel[channels, math.ceil(channels / _COLUMNS), math.ceil(outputs / _OUTPUTS)](
        partial_grad, grad, splits, channels, outputs, SIDE=side, COLUMNS=_COLUMNS, OUTPUTS=_OUTPUTS,
    )
    return grad
