"""From torch's layouts to those that the Triton kernels read and write, and back, in one launch each.

Imported when first needed, as `kernels`. In plain torch each takes several launches, and transposed copies are
slow. Only a transpose of more pixels than the grid of a launch takes, four million, goes in parts.
"""

# Triton's types say constexpr of constants, which are numbers where a kernel is launched.
# pyright: reportArgumentType=false, reportIndexIssue=false

import math
from typing import Optional

import torch
import triton
import triton.language as tl

# Sides of a tile that is read along one side and written along the other.
_SIDE = 64
_SIDE_OUTPUTS, _SIDE_COLUMNS = 32, 32
# As many programs as CUDA launches along the second dimension of a grid.
_MAX_TILES = 65535


@triton.jit
def _transpose_kernel(
        x, addend, result, row_count, column_count, row_stride, column_stride, ADDS: tl.constexpr, SIDE: tl.constexpr,
):
    """x (rows, columns), and with ADDS an addend of the same strides -> result (columns, rows), contiguous."""
    rows = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    columns = tl.program_id(1).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    inside = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    offsets = rows[:, None] * row_stride + columns[None, :] * column_stride
    tile = tl.load(x + offsets, mask=inside, other=0.)
    if ADDS:
        tile += tl.load(addend + offsets, mask=inside, other=0.)
    to = result + columns[:, None] * row_count + rows[None, :]
    tl.store(to, tile.T.to(result.dtype.element_ty), mask=inside.T)


@triton.jit
def _upper_kernel(weight, upper, channel_count, output_count, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr):
    """weight (O, C, C) -> upper (C, C, O); a program for a row and a tile of columns and outputs."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    outputs = (tl.program_id(2) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    matrices = weight + outputs[:, None] * channel_count * channel_count
    inside = (outputs < output_count)[:, None] & (columns < channel_count)[None, :]
    above, on = (columns > row)[None, :], (columns == row)[None, :]
    weights = tl.load(matrices + row * channel_count + columns[None, :], mask=inside & (above | on), other=0.)
    mirrored = tl.load(matrices + columns[None, :] * channel_count + row, mask=inside & above, other=0.)
    folded = weights.to(tl.float32) + mirrored.to(tl.float32)
    to = upper + (row * channel_count + columns[:, None]) * output_count + outputs[None, :]
    tl.store(to, folded.T.to(upper.dtype.element_ty), mask=inside.T)


@triton.jit
def _unfold_kernel(
        partial_grad, grad, splits, channel_count, output_count, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr,
):
    """partial_grad (splits, K, O) -> grad (O, C, C), the sum over the splits, for both orders of a pair."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    outputs = (tl.program_id(2) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    first, second = tl.minimum(row, columns), tl.maximum(row, columns)
    # The pairs of row i, (i, i), (i, i + 1), ..., come after those of the rows before it, of C, C - 1, ... pairs.
    pairs = first * channel_count - first * (first - 1) // 2 + second - first
    pair_count = tl.full((), channel_count, tl.int64) * (channel_count + 1) // 2
    inside = (columns < channel_count)[:, None] & (outputs < output_count)[None, :]
    offsets = pairs[:, None] * output_count + outputs[None, :]
    sums = tl.zeros((COLUMNS, OUTPUTS), tl.float32)
    for split in range(0, splits):
        sums += tl.load(partial_grad + split * pair_count * output_count + offsets, mask=inside, other=0.)
    to = grad + (outputs[:, None] * channel_count + row) * channel_count + columns[None, :]
    tl.store(to, sums.T.to(grad.dtype.element_ty), mask=inside.T)


def transposed(
        x: torch.Tensor,
        addend: Optional[torch.Tensor] = None,
        dtype: Optional[torch.dtype] = None,
) -> torch.Tensor:
    """The transpose of x, or of the sum of two, contiguous.

    Args:
        x: Shape (M, N), any strides.
        addend: The same shape and strides.
        dtype: Dtype of the result; that of x if None.

    Returns:
        Shape (N, M).
    """
    dtype = dtype or x.dtype
    if addend is None and x.dtype == dtype and x.t().is_contiguous():
        return x.t()
    rows, columns = x.shape
    result = x.new_empty(columns, rows, dtype=dtype)
    most = _MAX_TILES * _SIDE
    if columns <= most:
        # Without views, which small problems would wait for.
        _transpose(x, addend, result)
    else:
        for start in range(0, columns, most):
            part = slice(start, start + most)
            _transpose(x[:, part], None if addend is None else addend[:, part], result[part])
    return result


def _transpose(x: torch.Tensor, addend: Optional[torch.Tensor], result: torch.Tensor) -> None:
    (rows, columns), strides = x.shape, x.stride()
    if result.numel():
        _transpose_kernel[math.ceil(rows / _SIDE), math.ceil(columns / _SIDE)](
            x, x if addend is None else addend, result, rows, columns, *strides, ADDS=addend is not None, SIDE=_SIDE,
        )


def upper(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights (O, C, C) -> (C, C, O), folded on and above the diagonal in float32, zero below."""
    (outputs, channels, _), weight = weight.shape, weight.contiguous()
    result = weight.new_empty(channels, channels, outputs, dtype=dtype)
    _upper_kernel[channels, math.ceil(channels / _SIDE_COLUMNS), math.ceil(outputs / _SIDE_OUTPUTS)](
        weight, result, channels, outputs, COLUMNS=_SIDE_COLUMNS, OUTPUTS=_SIDE_OUTPUTS,
    )
    return result


def unfolded(partial_grad: torch.Tensor, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """Gradients of pairs (splits, K, O), in the order of `torch.triu_indices`, -> their sum over the splits (O, C, C).

    Both weights of a pair receive the gradient of their sum.
    """
    splits, _, outputs = partial_grad.shape
    grad = partial_grad.new_empty(outputs, channels, channels, dtype=dtype)
    _unfold_kernel[channels, math.ceil(channels / _SIDE_COLUMNS), math.ceil(outputs / _SIDE_OUTPUTS)](
        partial_grad, grad, splits, channels, outputs, COLUMNS=_SIDE_COLUMNS, OUTPUTS=_SIDE_OUTPUTS,
    )
    return grad
