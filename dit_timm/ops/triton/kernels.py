"""The quadratic form and its gradients on a GPU, in Triton: products are computed in registers and never reach memory.

Imported when first needed, since Triton is not on every platform; `binding` launches them.

x (P, C) and grad (P, O) are read where they lie, with any strides, and results are written contiguous. The pairs of
channels are computed in square blocks, those of SIDE rows and SIDE columns on and above the diagonal of the matrix of
pairs: a block of products is the outer product of two short pieces of x, so that a program reads 2 SIDE channels of a
pixel for SIDE * SIDE products of it, all by the threads that multiply them. Weights are "folded", in the order of
these blocks, see `layouts`. Sums are float32. Addresses are 64-bit: P * C and C * C * O pass 2^31.

OPERAND is the dtype of the operands of matrix units and PRECISION how they round float32, see `binding`. All products
are computed in float32 and then rounded to OPERAND.

Sums start as zero outside two loops, also where one would do: right before the only loop, ptxas makes each wide matrix
instruction of Hopper (wgmma) wait for the one before it.
"""

# Triton's types say constexpr of constants, which are numbers where a kernel is launched.
# pyright: reportArgumentType=false

import triton
import triton.language as tl

# As few kernels as possible are compiled: these numbers change with the batch.
_COUNTS = ('pixel_count', 'split_pixels', 'split_count')


@triton.jit
def _load(x, rows, columns, row_stride, column_stride, row_count, column_count):
    """A (rows, columns) tile of a matrix, zero outside."""
    offsets = rows[:, None].to(tl.int64) * row_stride + columns[None, :].to(tl.int64) * column_stride
    inside = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    return tl.load(x + offsets, mask=inside, other=0.)


@triton.jit
def _weights(folded, first_pair, outputs, output_count, PAIRS: tl.constexpr):
    """The (pairs, outputs) tile of the folded weights from a pair on, zero outside."""
    pairs = tl.full((), first_pair, tl.int64) + tl.arange(0, PAIRS)
    inside = (outputs < output_count)[None, :]
    return tl.load(folded + pairs[:, None] * output_count + outputs[None, :], mask=inside, other=0.)


@triton.jit
def _store(result, sums, rows, columns, row_count, column_count):
    """Write a (rows, columns) tile of a contiguous matrix, where it is inside."""
    inside = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    offsets = rows[:, None].to(tl.int64) * column_count + columns[None, :]
    tl.store(result + offsets, sums.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_COUNTS)
def forward_kernel(
        x, folded, output, pixel_stride, channel_stride, pixel_count, channel_count, output_count,
        OPERAND: tl.constexpr, PRECISION: tl.constexpr, PIXELS: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr,
        OUTPUTS: tl.constexpr, TAIL: tl.constexpr,
):
    """x (P, C), folded -> output (P, O); a program for a tile of pixels and outputs, ROWS rows of a block at a time."""
    pixels = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    first_output = tl.program_id(1) * (OUTPUTS + TAIL)
    outputs = first_output + tl.arange(0, OUTPUTS)
    sums = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    if TAIL:
        tail = first_output + OUTPUTS + tl.arange(0, TAIL)
        tail_sums = tl.zeros((PIXELS, TAIL), tl.float32)
    for column in range(0, tl.cdiv(channel_count, SIDE)):
        channels = column * SIDE + tl.arange(0, SIDE)
        x_columns = _load(x, pixels, channels, pixel_stride, channel_stride, pixel_count, channel_count)
        x_columns = x_columns.to(tl.float32)[:, None, :]
        # Blocks of a column follow one another.
        first_pair = tl.full((), column * (column + 1) // 2, tl.int64) * (SIDE * SIDE)
        for row in range(0, (column + 1) * (SIDE // ROWS)):
            row_channels = row * ROWS + tl.arange(0, ROWS)
            x_rows = _load(x, pixels, row_channels, pixel_stride, channel_stride, pixel_count, channel_count)
            products = (x_rows.to(tl.float32)[:, :, None] * x_columns).to(OPERAND).reshape(PIXELS, ROWS * SIDE)
            pair = first_pair + row * (ROWS * SIDE)
            weights = _weights(folded, pair, outputs, output_count, ROWS * SIDE)
            sums = tl.dot(products, weights, sums, input_precision=PRECISION)
            if TAIL:
                weights = _weights(folded, pair, tail, output_count, ROWS * SIDE)
                tail_sums = tl.dot(products, weights, tail_sums, input_precision=PRECISION)
    _store(output, sums, pixels, outputs, pixel_count, output_count)
    if TAIL:
        _store(output, tail_sums, pixels, tail, pixel_count, output_count)


@triton.jit(do_not_specialize=_COUNTS)
def grad_x_kernel(
        grad, x, folded, grad_x, grad_stride, output_stride, pixel_stride, channel_stride,
        pixel_count, channel_count, output_count,
        OPERAND: tl.constexpr, PRECISION: tl.constexpr, PIXELS: tl.constexpr, SIDE: tl.constexpr,
        CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, TAIL: tl.constexpr,
):
    """grad (P, O), x (P, C), folded -> grad_x (P, C); a program for a tile of pixels and channels.

    The gradient of a product goes to each of its factors, times the other. Those of a block of rows are summed beside
    one another over its columns. Those of columns are added to the block of the sums that they belong to: registers
    have no addresses, so an addition is made, and most leave it out, for each of the blocks.
    """
    pixels = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    blocks = tl.cdiv(channel_count, SIDE)
    first = tl.program_id(1) * (CHANNELS // SIDE)
    stop = tl.minimum(first + CHANNELS // SIDE, blocks)
    places = first + tl.arange(0, CHANNELS // SIDE)[None, :, None]
    sums = tl.zeros((PIXELS, CHANNELS // SIDE, SIDE), tl.float32)
    for first_output in range(0, output_count, OUTPUTS + TAIL):
        outputs = first_output + tl.arange(0, OUTPUTS)
        grads = _load(grad, pixels, outputs, grad_stride, output_stride, pixel_count, output_count).to(OPERAND)
        if TAIL:
            tail = first_output + OUTPUTS + tl.arange(0, TAIL)
            tail_grads = _load(grad, pixels, tail, grad_stride, output_stride, pixel_count, output_count).to(OPERAND)
        for row in range(0, stop):
            channels = row * SIDE + tl.arange(0, SIDE)
            x_rows = _load(x, pixels, channels, pixel_stride, channel_stride, pixel_count, channel_count)
            x_rows = x_rows.to(tl.float32)[:, :, None]
            row_sums = tl.zeros((PIXELS, SIDE, SIDE), tl.float32)
            # Rows above the program's channels have something for its columns, rows of its own also for themselves.
            for column in range(tl.maximum(row, first), tl.where(row < first, stop, blocks)):
                pair = tl.full((), column * (column + 1) // 2 + row, tl.int64) * (SIDE * SIDE)
                weights = _weights(folded, pair, outputs, output_count, SIDE * SIDE)
                grad_products = tl.dot(grads, weights.T, input_precision=PRECISION)
                if TAIL:
                    weights = _weights(folded, pair, tail, output_count, SIDE * SIDE)
                    grad_products = tl.dot(tail_grads, weights.T, grad_products, input_precision=PRECISION)
                grad_products = grad_products.reshape(PIXELS, SIDE, SIDE)
                channels = column * SIDE + tl.arange(0, SIDE)
                x_columns = _load(x, pixels, channels, pixel_stride, channel_stride, pixel_count, channel_count)
                row_sums += grad_products * x_columns.to(tl.float32)[:, None, :]
                column_sums = tl.sum(grad_products * x_rows, 1)
                sums = tl.where(places == column, sums + column_sums[:, None, :], sums)
            sums = tl.where(places == row, sums + tl.sum(row_sums, 2)[:, None, :], sums)
    channels = first * SIDE + tl.arange(0, CHANNELS)
    _store(grad_x, sums.reshape(PIXELS, CHANNELS), pixels, channels, pixel_count, channel_count)


@triton.jit(do_not_specialize=_COUNTS)
def grad_weight_kernel(
        grad, x, partial_grad, grad_stride, output_stride, pixel_stride, channel_stride,
        pixel_count, channel_count, output_count, split_pixels, split_count,
        OPERAND: tl.constexpr, PRECISION: tl.constexpr, PIXELS: tl.constexpr, PART: tl.constexpr, SIDE: tl.constexpr,
        OUTPUTS: tl.constexpr, TAIL: tl.constexpr,
):
    """grad (P, O), x (P, C) -> partial_grad (splits, pairs, O), float32, in the order of blocks of SIDE.

    A program for a block of pairs, its row and its column, and for a split of the pixels, of `split_pixels`, and a tile
    of outputs.
    """
    row, column = tl.program_id(0), tl.program_id(1)
    if row > column:
        return
    split = (tl.program_id(2) % split_count).to(tl.int64)
    first_output = tl.program_id(2) // split_count * (OUTPUTS + TAIL)
    outputs = first_output + tl.arange(0, OUTPUTS)
    start = split * split_pixels
    stop = tl.minimum(start + split_pixels, pixel_count)
    rows = row * SIDE + tl.arange(0, SIDE)
    columns = column * SIDE + tl.arange(0, SIDE)
    sums = tl.zeros((SIDE * SIDE, OUTPUTS), tl.float32)
    if TAIL:
        tail = first_output + OUTPUTS + tl.arange(0, TAIL)
        tail_sums = tl.zeros((SIDE * SIDE, TAIL), tl.float32)
    for part in range(start, stop, PART):
        for tile in range(part, tl.minimum(part + PART, stop), PIXELS):
            pixels = tile + tl.arange(0, PIXELS)
            x_rows = _load(x, rows, pixels, channel_stride, pixel_stride, channel_count, stop).to(tl.float32)
            x_columns = _load(x, columns, pixels, channel_stride, pixel_stride, channel_count, stop).to(tl.float32)
            products = (x_rows[:, None, :] * x_columns[None, :, :]).to(OPERAND).reshape(SIDE * SIDE, PIXELS)
            grads = _load(grad, pixels, outputs, grad_stride, output_stride, stop, output_count).to(OPERAND)
            sums = tl.dot(products, grads, sums, input_precision=PRECISION)
            if TAIL:
                grads = _load(grad, pixels, tail, grad_stride, output_stride, stop, output_count).to(OPERAND)
                tail_sums = tl.dot(products, grads, tail_sums, input_precision=PRECISION)
    blocks = tl.cdiv(channel_count, SIDE)
    block = split * (blocks * (blocks + 1) // 2) + column * (column + 1) // 2 + row
    pairs = block * (SIDE * SIDE) + tl.arange(0, SIDE * SIDE)
    _store(partial_grad, sums, pairs, outputs, (block + 1) * (SIDE * SIDE), output_count)
    if TAIL:
        _store(partial_grad, tail_sums, pairs, tail, (block + 1) * (SIDE * SIDE), output_count)
