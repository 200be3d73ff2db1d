"""The quadratic form on a GPU through Triton kernels (`kernels`): launches, and where they can run.

Gradients are the same bits each time: no two programs add to one place, and tiles are chosen by shape and dtype alone.
"""

# A launch subscripts a kernel with its grid, which a function is to type checkers that do not know Triton.
# pyright: reportIndexIssue=false

import functools
import importlib.util
import math
import os
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch

from ..operators import register_operators

_INSTALLED = importlib.util.find_spec('triton') is not None
# Triton's interpreter runs kernels on the CPU, to test them.
_INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
# The release of torch 2.8, the oldest that the tests have run on. The interpreter of 3.1 computes other numbers.
_MIN_TRITON = (3, 4)
# bfloat16 and TF32 in matrix units.
_MIN_CAPABILITY = (8, 0)


def why_unusable(device: torch.device, dtype: torch.dtype) -> Optional[str]:
    """Say why the kernels cannot run on inputs of a device and dtype; None where they can."""
    if not _INSTALLED:
        return 'Triton is not installed: `pip install triton`, where there is a release for the platform.'
    if dtype == torch.float64:
        return 'it sums in float32.'
    if device.type not in ('cuda', 'meta') and not (device.type == 'cpu' and _INTERPRETED):
        return 'it needs a GPU.'
    if triton_version() < _MIN_TRITON:
        expected, found = ('.'.join(map(str, version)) for version in (_MIN_TRITON, triton_version()))
        return f'it needs Triton {expected}, which comes with torch 2.8, or later; this is {found}.'
    if device.type != 'cuda':
        return None
    capability = _capability(device)
    if capability is None:
        return 'torch finds no GPU (torch.cuda.is_available() is False).'
    if capability < _MIN_CAPABILITY:
        expected, found = ('.'.join(map(str, version)) for version in (_MIN_CAPABILITY, capability))
        return f'it needs a GPU of compute capability {expected} or later; this one has {found}.'
    return None


# Dynamo cannot trace into it.
@torch.compiler.assume_constant_result
@functools.cache
def triton_version() -> Tuple[int, int]:
    """Major and minor version of the installed Triton."""
    import triton

    major, minor = triton.__version__.split('.')[:2]
    return int(major), int(minor)


# Dynamo cannot trace into it.
@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> Optional[Tuple[int, int]]:
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


def _allows_tf32() -> bool:
    settings = torch.backends.cuda.matmul
    # torch before 2.9 has no other name for it.
    return settings.fp32_precision == 'tf32' if hasattr(settings, 'fp32_precision') else bool(settings.allow_tf32)


def _operand(x: torch.Tensor) -> Tuple[torch.dtype, str]:
    """What matrix units multiply: the dtype of operands, and how they round float32.

    bfloat16 has the range of float32: products are rounded to it. float16 has not: products would overflow. The 10
    bits of its mantissa are those of TF32, so that is what they become.
    """
    if x.dtype == torch.bfloat16:
        return torch.bfloat16, 'ieee'
    if x.dtype == torch.float16 or _allows_tf32():
        return torch.float32, 'tf32'
    return torch.float32, 'ieee'


class _Launch(NamedTuple):
    """What a launch takes beside tensors and sizes."""
    kernel: Any
    grid: Tuple[int, int, int]
    options: Dict[str, Any]


# A small form waits for what Python does at a launch: this is done once for a shape.
@functools.lru_cache(maxsize=1024)
def _plan(
        name: str, operand: torch.dtype, precision: str, device: torch.device, pixels: int, channels: int, outputs: int,
) -> Tuple[_Launch, Tuple[int, int]]:
    """The launch of a kernel, and for the gradient of the weights the splits of the pixels and the pixels of each."""
    import triton.language as tl

    from . import kernels, tiles
    # The interpreter runs the larger tiles.
    hopper = device.type != 'cuda' or torch.cuda.get_device_capability(device) >= (9, 0)
    splits = 1, pixels
    if name == 'forward':
        tile = tiles.forward_tile(operand, precision, hopper, pixels, outputs)
        grid = math.ceil(pixels / tile.sizes['PIXELS']), math.ceil(outputs / tile.outputs), 1
    elif name == 'grad_x':
        tile = tiles.grad_x_tile(operand, precision, hopper, channels, outputs)
        grid = math.ceil(pixels / tile.sizes['PIXELS']), math.ceil(channels / tile.sizes['CHANNELS']), 1
    else:
        tile = tiles.grad_weight_tile(operand, precision, hopper, outputs)
        splits = tiles.split_pixels(tile, pixels, channels, outputs)
        blocks = math.ceil(channels / tiles.GRAD_SIDE)
        grid = blocks, blocks, math.ceil(outputs / tile.outputs) * splits[0]
    constants = dict(OPERAND=tl.bfloat16 if operand == torch.bfloat16 else tl.float32, PRECISION=precision)
    return _Launch(getattr(kernels, f'{name}_kernel'), grid, {**constants, **tile.options}), splits


def _forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    (pixels, channels), outputs = x.shape, weight.shape[0]
    output = x.new_empty(pixels, outputs)
    if output.numel() == 0:
        return output
    from . import layouts, tiles
    operand, precision = _operand(x)
    (kernel, grid, options), _ = _plan('forward', operand, precision, x.device, pixels, channels, outputs)
    kernel[grid](
        x, layouts.folded(weight, operand, tiles.SIDE), output, *x.stride(), pixels, channels, outputs, **options,
    )
    return output


def _grad_x(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    (pixels, channels), outputs = x.shape, weight.shape[0]
    grad_x = x.new_empty(x.shape)
    if x.numel() == 0:
        return grad_x
    from . import layouts, tiles
    operand, precision = _operand(x)
    (kernel, grid, options), _ = _plan('grad_x', operand, precision, x.device, pixels, channels, outputs)
    kernel[grid](
        grad, x, layouts.folded(weight, operand, tiles.SIDE), grad_x, *grad.stride(), *x.stride(),
        pixels, channels, outputs, **options,
    )
    return grad_x


def _grad_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    (pixels, channels), outputs = x.shape, grad.shape[1]
    if x.numel() == 0 or outputs == 0:
        return x.new_zeros(outputs, channels, channels)
    from . import layouts, tiles
    operand, precision = _operand(x)
    (kernel, grid, options), (splits, size) = _plan(
        'grad_weight', operand, precision, x.device, pixels, channels, outputs,
    )
    pairs = layouts.block_count(channels, tiles.GRAD_SIDE) * tiles.GRAD_SIDE ** 2
    partial_grad = x.new_empty(splits, pairs, outputs, dtype=torch.float32)
    kernel[grid](
        grad, x, partial_grad, *grad.stride(), *x.stride(), pixels, channels, outputs, size, splits, **options,
    )
    return layouts.unfolded(partial_grad, channels, x.dtype, tiles.GRAD_SIDE)


quadratic_form_triton = register_operators('triton', _forward, _grad_x, _grad_weight)
