"""The quadratic form on a CPU through compiled kernels: products are computed in the cache and never reach memory.

The kernels (`kernels.c`) are plain C, compiled when the package is built if GCC is installed; without them
plain torch computes the form.
"""

import ctypes
import functools
import importlib.util
import itertools
from typing import Dict, Optional, Tuple

import torch

from ..operators import register_operators

_LIBRARY = getattr(importlib.util.find_spec(f'{__package__}._kernels'), 'origin', None)
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_MATRIX = (_POINTER, _SIZE, _SIZE)
_ARGUMENTS = {
    'dit_native_forward': (*_MATRIX, _POINTER, _POINTER),
    'dit_native_grad_x': (*_MATRIX, *_MATRIX, _POINTER, _POINTER),
    'dit_native_grad_weight': (*_MATRIX, *_MATRIX, _POINTER),
}


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(_LIBRARY)
    library.dit_native_isa.restype = ctypes.c_char_p
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = (ctypes.c_int, ctypes.c_int, _SIZE, _SIZE, _SIZE, *arguments)
    return library


@functools.cache
def instruction_sets() -> Dict[str, int]:
    """Names and numbers of the instruction sets that the kernels support and this machine has, the best first."""
    names = itertools.takewhile(lambda name: name is not None, map(_library().dit_native_isa, itertools.count()))
    return {name.decode(): number for number, name in enumerate(names) if name}


def why_unusable(device: torch.device, dtype: torch.dtype) -> Optional[str]:
    """Say why the kernels cannot run on inputs of a device and dtype; None where they can."""
    if device.type not in ('cpu', 'meta'):
        return 'it runs on the CPU only.'
    if dtype == torch.float64:
        return 'it computes in float32.'
    if _LIBRARY is None:
        return 'the compiled kernels are missing: install GCC, then reinstall dit_timm.'
    return None


def _matrix(tensor: torch.Tensor) -> Tuple[int, int, int]:
    row_stride, column_stride = tensor.stride()
    return tensor.data_ptr(), row_stride, column_stride


def _run(function: str, x: torch.Tensor, outputs: int, *arguments: int) -> None:
    isa = next(iter(instruction_sets().values()))
    threads = torch.get_num_threads()
    if not getattr(_library(), function)(isa, threads, *x.shape, outputs, *arguments):
        raise MemoryError(
            f'{function}: no memory for x of shape {tuple(x.shape)}, {outputs} outputs and {threads} threads.'
        )


def _forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    inputs, weights = x.float(), weight.float().contiguous()
    output = inputs.new_empty(x.shape[0], weight.shape[0])
    _run('dit_native_forward', inputs, weight.shape[0], *_matrix(inputs), weights.data_ptr(), output.data_ptr())
    return output if x.dtype == torch.float32 else output.to(x.dtype)


def _grad_x(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    grads, inputs, weights = grad.float(), x.float(), weight.float().contiguous()
    output = inputs.new_empty(x.shape)
    _run(
        'dit_native_grad_x', inputs, weight.shape[0],
        *_matrix(grads), *_matrix(inputs), weights.data_ptr(), output.data_ptr(),
    )
    return output if x.dtype == torch.float32 else output.to(x.dtype)


def _grad_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    grads, inputs = grad.float(), x.float()
    output = inputs.new_empty(grad.shape[1], x.shape[1], x.shape[1])
    _run('dit_native_grad_weight', inputs, grad.shape[1], *_matrix(grads), *_matrix(inputs), output.data_ptr())
    return output if x.dtype == torch.float32 else output.to(x.dtype)


quadratic_form_native = register_operators('native', _forward, _grad_x, _grad_weight)
