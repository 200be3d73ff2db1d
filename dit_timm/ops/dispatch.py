"""The one public function of the quadratic form, and the backends that it picks from."""

import difflib
from typing import Callable, NamedTuple, Optional, Tuple, Union

import torch

from .chunked import quadratic_form_chunked
from .native import binding as native_backend
from .portable import quadratic_form_portable
from .reference import quadratic_form_reference
from .triton import binding as triton_backend

# torch.compiler says so from torch 2.7 on.
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)


class Backend(NamedTuple):
    """One way to compute the quadratic form.

    Attributes:
        compute: Maps x (P, C) and weight (O, C, C) to (P, O).
        why_unusable: Says why it cannot run on a device and dtype, or returns None where it can.
    """
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    why_unusable: Callable[[torch.device, torch.dtype], Optional[str]] = lambda device, dtype: None


# In order of preference: the automatic choice is the first that is usable for the device and dtype of the inputs.
_BACKENDS = {
    # Sums in float32 whatever the dtype. For bfloat16 its kernels take a third to two thirds of the chunked backend's
    # time on CPUs with matrix units for it too (hub/results/benchmark_cpu_op_bfloat16.csv): they make the products of
    # channels in registers, and the chunked backend in memory.
    'native': Backend(native_backend.quadratic_form_native, native_backend.why_unusable),
    'triton': Backend(triton_backend.quadratic_form_triton, triton_backend.why_unusable),
    'chunked': Backend(quadratic_form_chunked),
    'reference': Backend(quadratic_form_reference),
}


def available_backends(
        device: Union[str, torch.device] = 'cpu',
        dtype: torch.dtype = torch.float32,
) -> Tuple[str, ...]:
    """Names that `quadratic_form` accepts as `backend` for inputs of a device and dtype, the preferred one first.

    Args:
        device: A device or its name, such as 'cpu' or 'cuda:0'.
        dtype: Dtype of the inputs; under autocast, that of autocast.
    """
    device = torch.device(device)
    return tuple(name for name, backend in _BACKENDS.items() if backend.why_unusable(device, dtype) is None)


def quadratic_form(x: torch.Tensor, weight: torch.Tensor, backend: Optional[str] = None) -> torch.Tensor:
    """Weighted sum of all pairwise products of channels, `q_o = sum_ij weight[o, i, j] x_i x_j`.

    The quadratic term of a dendrite (Liu et al., "Dendritic Integration Inspired Artificial Neural Networks Capture
    Data Correlation", NeurIPS 2024), at every position of the leading dimensions of `x`.

    Half precision is summed in float32. Its products are float32 too, except where matrix units multiply bfloat16:
    there they are rounded to it. On a GPU, float32 is rounded to TF32 where
    `torch.backends.cuda.matmul.fp32_precision` is 'tf32' (`allow_tf32` before torch 2.9), and products of float16 are
    always.

    Under autocast both inputs are first cast to the autocast dtype, as those of a convolution are. Scripted, traced
    and exported graphs hold plain torch operators whatever the backend (those of `torch.export` from torch 2.7 on).

    Args:
        x: Inputs of shape (..., C), floating point.
        weight: Weights of shape (O, C, C), with the device of `x`, and outside autocast its dtype.
        backend: None for the fastest that is usable, or a name from `available_backends()`. 'reference' is the
            formula written out, and needs memory for all P * C * C products; 'chunked' needs memory for a bounded
            tile of them, in plain torch; 'native' are kernels for the CPU, compiled with the package; 'triton' are
            kernels for GPUs. A backend asked for by name is never replaced by another.

    Returns:
        Outputs of shape (..., O), with the dtype of `x`, or the autocast dtype under autocast.

    Raises:
        ValueError: Shapes or devices do not match, or `backend` is unknown.
        TypeError: A dtype is not floating point, or the dtypes differ outside autocast.
        RuntimeError: The backend cannot run on the device and dtype of `x`.
    """
    if torch.jit.is_scripting():
        flat = quadratic_form_portable(x.reshape(-1, x.shape[-1]), weight)
        return flat.reshape(x.shape[:-1] + [weight.shape[0]])
    else:
        return _quadratic_form(x, weight, backend)


@torch.jit.unused
def _quadratic_form(x: torch.Tensor, weight: torch.Tensor, backend: Optional[str]) -> torch.Tensor:
    device_type = x.device.type
    autocast = _autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    _check_inputs(x, weight, autocast)
    if autocast:
        dtype = torch.get_autocast_dtype(device_type)
        x, weight = (tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in (x, weight))
        weight = weight.to(x.dtype)
    compute = _pick(backend, x.device, x.dtype)
    if _is_exporting() or torch.jit.is_tracing():
        compute = quadratic_form_portable
    # A view costs as much as a small form, forward and backward.
    flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    if autocast:
        with torch.autocast(device_type, enabled=False):
            output = compute(flat, weight)
    else:
        output = compute(flat, weight)
    return output if x.ndim == 2 else output.reshape(*x.shape[:-1], weight.shape[0])


# Dynamo of torch 2.11 cannot trace into it.
@torch.compiler.assume_constant_result
def _autocast_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def _pick(
        name: Optional[str],
        device: torch.device,
        dtype: torch.dtype,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if name is None:
        # Not by available_backends, which asks all: for a small form that takes as long as to compute it.
        return next(backend.compute for backend in _BACKENDS.values() if backend.why_unusable(device, dtype) is None)
    check_backend(name)
    backend = _BACKENDS[name]
    reason = backend.why_unusable(device, dtype)
    if reason is not None:
        usable = ', '.join(map(repr, available_backends(device, dtype)))
        raise RuntimeError(f'backend {name!r} cannot run on {str(device)!r} with {dtype}: {reason} Usable: {usable}.')
    return backend.compute


def check_backend(name: Optional[str]) -> None:
    """Raise a ValueError if `name` is neither None nor the name of a backend, be it usable here or not."""
    if name is not None and name not in _BACKENDS:
        near = difflib.get_close_matches(str(name), _BACKENDS, n=1)
        hint = f' Did you mean {near[0]!r}?' if near else ''
        raise ValueError(f'backend must be None or one of {", ".join(map(repr, _BACKENDS))}; got {name!r}.{hint}')


def _check_inputs(x: torch.Tensor, weight: torch.Tensor, autocast: bool) -> None:
    if weight.ndim != 3 or weight.shape[1] != weight.shape[2]:
        raise ValueError(f'weight must have shape (O, C, C); got {tuple(weight.shape)}.')
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f'x must have shape (..., C) with C = {weight.shape[1]}, the channels of weight {tuple(weight.shape)}; '
            f'got {tuple(x.shape)}.'
        )
    for name, tensor in (('x', x), ('weight', weight)):
        if not tensor.dtype.is_floating_point:
            raise TypeError(f'{name} must be floating point; got {tensor.dtype}.')
    if x.dtype != weight.dtype and not autocast:
        raise TypeError(
            f'weight must have the dtype of x, {x.dtype}; got {weight.dtype}. Cast one, or compute under autocast.'
        )
    if x.device != weight.device:
        raise ValueError(f'weight must be on the device of x, {x.device}; got {weight.device}.')
