"""The quadratic form and its gradients on a GPU, in Triton: products are computed in registers and never reach memory.

Imported when first needed, since Triton is not on every platform; `binding` launches them.

Pixels are contiguous in memory, x is (C, P): then one channel of a tile of pixels is one coalesced load. Weights are
"upper", (C, C, O): folded on and above the diagonal, zero below, so that a tile that crosses the diagonal may compute
all its pairs. Sums are float32. Addresses are 64-bit: P * C and C * C * O pass 2^31.

OPERAND is the dtype of the operands of matrix units and PRECISION how they round float32, see `binding`. All products
are computed in float32 and then rounded to OPERAND.
"""

# Triton's types say constexpr of constants, which are numbers where a kernel is launched.
# pyright: reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def _channels(x, channels, channel_count, pixels, pixel_count):
    """A (pixels, channels) tile of x (C, P) in float32, zero outside."""
    offsets = channels[None, :].to(tl.int64) * pixel_count + pixels[:, None]
    inside = (channels < channel_count)[None, :] & (pixels < pixel_count)[:, None]
    return tl.load(x + offsets, mask=inside, other=0.).to(tl.float32)


@triton.jit
def _channel(x, channel, pixels, pixel_count):
    """One channel of x (C, P) at some pixels in float32, zero outside."""
    offsets = tl.full((), channel, tl.int64) * pixel_count + pixels
    return tl.load(x + offsets, mask=pixels < pixel_count, other=0.).to(tl.float32)


@triton.jit
def _weights(upper, row, columns, outputs, channel_count, output_count):
    """A (columns, outputs) tile of the weights of pairs (row, columns), zero outside."""
    offsets = (tl.full((), row, tl.int64) * channel_count + columns) * output_count
    inside = (columns < channel_count)[:, None] & (outputs < output_count)[None, :]
    return tl.load(upper + offsets[:, None] + outputs[None, :], mask=inside, other=0.)


@triton.jit
def _store_outputs(output, sums, pixels, outputs, pixel_count, output_count):
    """Write a (pixels, outputs) tile of output (P, O), where it is inside."""
    inside = (pixels < pixel_count)[:, None] & (outputs < output_count)[None, :]
    tl.store(output + pixels[:, None] * output_count + outputs[None, :], sums.to(output.dtype.element_ty), mask=inside)


@triton.jit
def forward_kernel(
        x, upper, output, pixel_count, channel_count, output_count,
        OPERAND: tl.constexpr, PRECISION: tl.constexpr,
        PIXELS: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr, TAIL: tl.constexpr,
):
    """x (C, P), upper (C, C, O) -> output (P, O); a program for a tile of pixels and outputs."""
    pixels = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    first_output = tl.program_id(1) * (OUTPUTS + TAIL)
    outputs = first_output + tl.arange(0, OUTPUTS)
    sums = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    if TAIL:
        tail = first_output + OUTPUTS + tl.arange(0, TAIL)
        tail_sums = tl.zeros((PIXELS, TAIL), tl.float32)
    for start in range(0, channel_count, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        x_columns = _channels(x, columns, channel_count, pixels, pixel_count)
        for row in range(0, min(start + COLUMNS, channel_count)):
            products = (_channel(x, row, pixels, pixel_count)[:, None] * x_columns).to(OPERAND)
            weights = _weights(upper, row, columns, outputs, channel_count, output_count)
            sums = tl.dot(products, weights, sums, input_precision=PRECISION)
            if TAIL:
                weights = _weights(upper, row, columns, tail, channel_count, output_count)
                tail_sums = tl.dot(products, weights, tail_sums, input_precision=PRECISION)
    _store_outputs(output, sums, pixels, outputs, pixel_count, output_count)
    if TAIL:
        _store_outputs(output, tail_sums, pixels, tail, pixel_count, output_count)


@triton.jit
def grad_x_kernel(
        grad, x, upper, row_grad, column_grad, pixel_count, channel_count, output_count,
        OPERAND: tl.constexpr, PRECISION: tl.constexpr,
        PIXELS: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr, TAIL: tl.constexpr,
):
    """grad (O, P), x (C, P), upper -> row_grad and column_grad (C, P), float32, whose sum is the gradient of x.

    The gradient of a product goes to each of its factors, times the other. Both results must be zero before. A program
    owns its pixels, and adds to an element at one place in the code: in the same order each time.
    """
    pixels = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    in_image = pixels < pixel_count
    for first_output in range(0, output_count, OUTPUTS + TAIL):
        outputs = first_output + tl.arange(0, OUTPUTS)
        grads = _channels(grad, outputs, output_count, pixels, pixel_count).to(OPERAND)
        if TAIL:
            tail = first_output + OUTPUTS + tl.arange(0, TAIL)
            tail_grads = _channels(grad, tail, output_count, pixels, pixel_count).to(OPERAND)
        for start in range(0, channel_count, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            x_columns = _channels(x, columns, channel_count, pixels, pixel_count)
            sums = tl.zeros((PIXELS, COLUMNS), tl.float32)
            for row in range(0, min(start + COLUMNS, channel_count)):
                weights = _weights(upper, row, columns, outputs, channel_count, output_count)
                grad_products = tl.dot(grads, weights.T, input_precision=PRECISION)
                if TAIL:
                    weights = _weights(upper, row, columns, tail, channel_count, output_count)
                    grad_products = tl.dot(tail_grads, weights.T, grad_products, input_precision=PRECISION)
                sums += _channel(x, row, pixels, pixel_count)[:, None] * grad_products
                to_row = row_grad + tl.full((), row, tl.int64) * pixel_count + pixels
                tl.atomic_add(to_row, tl.sum(grad_products * x_columns, 1), mask=in_image, sem='relaxed')
            to_columns = column_grad + columns[None, :].to(tl.int64) * pixel_count + pixels[:, None]
            in_columns = in_image[:, None] & (columns < channel_count)[None, :]
            tl.atomic_add(to_columns, sums, mask=in_columns, sem='relaxed')


@triton.jit
def grad_weight_kernel(
        grad, x, first, second, partial_grad, pixel_count, pair_count, output_count, split_pixels,
        OPERAND: tl.constexpr, PRECISION: tl.constexpr,
        PIXELS: tl.constexpr, PAIRS: tl.constexpr, OUTPUTS: tl.constexpr, TAIL: tl.constexpr,
):
    """grad (O, P), x (C, P), channels of the pairs (K,) twice -> partial_grad (splits, K, O), float32.

    A program for a tile of pairs and outputs and a split of the pixels, of `split_pixels`.
    """
    pairs = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    first_output = tl.program_id(1) * (OUTPUTS + TAIL)
    outputs = first_output + tl.arange(0, OUTPUTS)
    split = tl.program_id(2).to(tl.int64)
    in_pairs = pairs < pair_count
    first_offsets = tl.load(first + pairs, mask=in_pairs, other=0).to(tl.int64)[:, None] * pixel_count
    second_offsets = tl.load(second + pairs, mask=in_pairs, other=0).to(tl.int64)[:, None] * pixel_count
    start = split * split_pixels
    stop = min(start + split_pixels, pixel_count)
    sums = tl.zeros((PAIRS, OUTPUTS), tl.float32)
    if TAIL:
        tail = first_output + OUTPUTS + tl.arange(0, TAIL)
        tail_sums = tl.zeros((PAIRS, TAIL), tl.float32)
    for tile in range(start, stop, PIXELS):
        pixels = tile + tl.arange(0, PIXELS)
        inside = in_pairs[:, None] & (pixels < stop)[None, :]
        firsts = tl.load(x + first_offsets + pixels[None, :], mask=inside, other=0.).to(tl.float32)
        seconds = tl.load(x + second_offsets + pixels[None, :], mask=inside, other=0.).to(tl.float32)
        products = (firsts * seconds).to(OPERAND)
        grads = _channels(grad, outputs, output_count, pixels, pixel_count).to(OPERAND)
        sums = tl.dot(products, grads, sums, input_precision=PRECISION)
        if TAIL:
            grads = _channels(grad, tail, output_count, pixels, pixel_count).to(OPERAND)
            tail_sums = tl.dot(products, grads, tail_sums, input_precision=PRECISION)
    rows = split * pair_count + pairs
    row_count = (split + 1) * pair_count
    _store_outputs(partial_grad, sums, rows, outputs, row_count, output_count)
    if TAIL:
        _store_outputs(partial_grad, tail_sums, rows, tail, row_count, output_count)
