"""The backends of the quadratic form, and the order in which they are preferred.

A new backend is one function of x (P, C) and weight (O, C, C) that autograd can differentiate. `register_operators`
makes it of a forward computation and two gradients; then

    register_backend('name', compute, why_unusable, before='chunked')

makes it known to `quadratic_form`, `available_backends` and every layer. One of this package is registered at the end
of this module, and `tests/ops` then compare it with the formula wherever it can run.
"""

import difflib
import math
from typing import Callable, Dict, NamedTuple, Optional, Tuple, Union

import torch

from .chunked import quadratic_form_chunked
from .contracted import is_contracted_faster, quadratic_form_contracted
from .materialised import is_materialised_faster, quadratic_form_materialised
from .native import binding as native_backend
from .reference import quadratic_form_reference
from .triton import binding as triton_backend

Compute = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WhyUnusable = Callable[[torch.device, torch.dtype], Optional[str]]


class Backend(NamedTuple):
    """An implementation of the quadratic form.

    Attributes:
        compute: Maps x (P, C) and weight (O, C, C) to (P, O).
        why_unusable: Says why it cannot run on a device and dtype, or returns None where it can.
    """
    compute: Compute
    why_unusable: WhyUnusable


MATERIALISED, CONTRACTED = 'materialised', 'contracted'
# In order of preference: the automatic choice is the first that is usable for the device and dtype of the inputs, but
# see `automatic_backend`.
_BACKENDS: Dict[str, Backend] = {}


def register_backend(
        name: str,
        compute: Compute,
        why_unusable: WhyUnusable = lambda device, dtype: None,
        before: Optional[str] = None,
) -> None:
    """Add a backend, which `quadratic_form` then accepts by name.

    Args:
        name: Its name.
        compute: Maps x (P, C) and weight (O, C, C), of one device and dtype, to (P, O); differentiable.
        why_unusable: Maps a device and dtype to the sentence that says why it cannot run there, or to None where it
            can. By default it runs everywhere. The automatic choice asks it at every call.
        before: The backend that it is preferred to; None puts it last.

    Raises:
        ValueError: There is a backend of this name, or none of the name `before`.
    """
    if name in _BACKENDS:
        raise ValueError(f'there is a backend {name!r} already; name the new one otherwise.')
    check_backend(before)
    names = [*_BACKENDS]
    later = [] if before is None else names[names.index(before):]
    _BACKENDS[name] = Backend(compute, why_unusable)
    for other in later:
        _BACKENDS[other] = _BACKENDS.pop(other)


def unregister_backend(name: str) -> None:
    """Remove a backend; a layer that names it raises from then on.

    Raises:
        ValueError: There is no such backend.
    """
    check_backend(name)
    del _BACKENDS[name]


def available_backends(
        device: Union[str, torch.device] = 'cpu',
        dtype: torch.dtype = torch.float32,
) -> Tuple[str, ...]:
    """Names that `quadratic_form` accepts as `backend` for inputs of a device and dtype, the preferred one first.

    Forms of few outputs or pixels have others by themselves, see `automatic_backend`.

    Args:
        device: A device or its name, such as 'cpu' or 'cuda:0'.
        dtype: Dtype of the inputs; under autocast, that of autocast.
    """
    device = torch.device(device)
    return tuple(name for name, backend in _BACKENDS.items() if backend.why_unusable(device, dtype) is None)


def check_backend(name: Optional[str]) -> None:
    """Raise a ValueError if `name` is neither None nor the name of a backend, be it usable here or not."""
    if name is not None and name not in _BACKENDS:
        near = difflib.get_close_matches(str(name), _BACKENDS, n=1)
        hint = f' Did you mean {near[0]!r}?' if near else ''
        raise ValueError(f'backend must be None or one of {", ".join(map(repr, _BACKENDS))}; got {name!r}.{hint}')


def _preferred(device: torch.device, dtype: torch.dtype) -> str:
    # Not by available_backends, which asks all: for a small form that takes as long as to compute it.
    return next(name for name, backend in _BACKENDS.items() if backend.why_unusable(device, dtype) is None)


def automatic_backend(
        device: torch.device, dtype: torch.dtype, pixels: Optional[int], channels: int, outputs: int,
) -> str:
    """Name of what computes a form where no backend is asked for: the preferred, or what is faster for small ones.

    On a CPU forms of few outputs or few pixels are 'contracted', see `is_contracted_faster`. On a GPU small ones are
    'materialised', see `is_materialised_faster`; that is not a backend, since it takes memory for all products.

    Args:
        device: Device of the inputs.
        dtype: Their dtype.
        pixels: Pixels, of all images; None if they are not known.
        channels: Channels of x.
        outputs: Outputs.
    """
    name = _preferred(device, dtype)
    # On the meta device there is nothing to wait for, and the operators' arithmetic is counted.
    if name == 'triton' and device.type != 'meta' and pixels is not None:
        return MATERIALISED if is_materialised_faster(dtype, pixels, channels, outputs) else name
    if device.type == 'cpu' and CONTRACTED in _BACKENDS and is_contracted_faster(name, pixels, channels, outputs):
        return CONTRACTED
    return name


def pick_backend(name: Optional[str], x: torch.Tensor, weight: torch.Tensor) -> Compute:
    """The computation of a backend, that of `automatic_backend` if `name` is None.

    Args:
        name: Its name.
        x: Inputs of shape (..., C).
        weight: Weights of shape (O, C, C).

    Raises:
        ValueError: There is no such backend.
        RuntimeError: It cannot run on the device and dtype.
    """
    device, dtype = x.device, x.dtype
    if name is None:
        compiling = torch.compiler.is_compiling()
        if not compiling and torch._C._are_functorch_transforms_active():
            # vmap hides how many pixels or outputs there are.
            return _BACKENDS[_preferred(device, dtype)].compute
        outputs, channels, _ = weight.shape
        # A compiled graph is one for all numbers of pixels, and a mode, such as FlopCounterMode, wants our operators.
        known = not compiling and torch._C._len_torch_dispatch_stack() == 0
        name = automatic_backend(device, dtype, math.prod(x.shape[:-1]) if known else None, channels, outputs)
        return quadratic_form_materialised if name == MATERIALISED else _BACKENDS[name].compute
    check_backend(name)
    backend = _BACKENDS[name]
    reason = backend.why_unusable(device, dtype)
    if reason is not None:
        usable = ', '.join(map(repr, available_backends(device, dtype)))
        raise RuntimeError(f'backend {name!r} cannot run on {str(device)!r} with {dtype}: {reason} Usable: {usable}.')
    return backend.compute


# Sums in float32 whatever the dtype. For bfloat16 its kernels take a third to two thirds of the chunked backend's time
# on CPUs with matrix units for it too (hub/results/benchmark_cpu_op_bfloat16.csv): they make the products of channels
# in registers, and the chunked backend in memory.
register_backend('native', native_backend.quadratic_form_native, native_backend.why_unusable)
register_backend('triton', triton_backend.quadratic_form_triton, triton_backend.why_unusable)
register_backend('chunked', quadratic_form_chunked)
register_backend(CONTRACTED, quadratic_form_contracted)
register_backend('reference', quadratic_form_reference)
