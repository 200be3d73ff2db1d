"""The one public function of the quadratic form, and the backends that it picks from."""

import difflib
from typing import Callable, NamedTuple, Optional, Tuple

import torch

from .chunked import quadratic_form_chunked
from .portable import quadratic_form_portable
from .reference import quadratic_form_reference


class Backend(NamedTuple):
    """One way to compute the quadratic form.

    Attributes:
        compute: Maps x (P, C) and weight (O, C, C) to (P, O).
        why_unusable: Says why it cannot run on a device type, or returns None where it can.
    """
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    why_unusable: Callable[[str], Optional[str]] = lambda device_type: None


# In order of preference: the automatic choice is the first that is usable on the device of the inputs.
_BACKENDS = {
    'chunked': Backend(quadratic_form_chunked),
    'reference': Backend(quadratic_form_reference),
}


def available_backends(device: str = 'cpu') -> Tuple[str, ...]:
    """Names that `quadratic_form` accepts as `backend` for inputs on `device`, the preferred one first.

    Args:
        device: A device or device type, such as 'cpu' or 'cuda:0'.
    """
    device_type = torch.device(device).type
    return tuple(name for name, backend in _BACKENDS.items() if backend.why_unusable(device_type) is None)


def quadratic_form(x: torch.Tensor, weight: torch.Tensor, backend: Optional[str] = None) -> torch.Tensor:
    """Weighted sum of all pairwise products of channels, `q_o = sum_ij weight[o, i, j] x_i x_j`.

    The quadratic term of a dendrite (Liu et al., "Dendritic Integration Inspired Artificial Neural Networks Capture
    Data Correlation", NeurIPS 2024), at every position of the leading dimensions of `x`.

    Products and sums are float32 for float16 and bfloat16 inputs. Under autocast both inputs are first cast to the
    autocast dtype, as those of a convolution are. Scripted, traced and exported graphs hold plain torch operators
    whatever the backend.

    Args:
        x: Inputs of shape (..., C), floating point.
        weight: Weights of shape (O, C, C), with the device of `x`, and outside autocast its dtype.
        backend: None for the fastest that is usable, or a name from `available_backends()`. 'reference' is the
            formula written out, and needs memory for all P * C * C products; 'chunked' needs memory for a bounded
            tile of them. A backend asked for by name is never replaced by another.

    Returns:
        Outputs of shape (..., O), with the dtype of `x`, or the autocast dtype under autocast.

    Raises:
        ValueError: Shapes or devices do not match, or `backend` is unknown.
        TypeError: A dtype is not floating point, or the dtypes differ outside autocast.
        RuntimeError: The backend cannot run on the device of `x`.
    """
    if torch.jit.is_scripting():
        flat = quadratic_form_portable(x.reshape(-1, x.shape[-1]), weight)
        return flat.reshape(x.shape[:-1] + [weight.shape[0]])
    else:
        return _quadratic_form(x, weight, backend)


@torch.jit.unused
def _quadratic_form(x: torch.Tensor, weight: torch.Tensor, backend: Optional[str]) -> torch.Tensor:
    device_type = x.device.type
    autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    _check_inputs(x, weight, autocast)
    compute = _pick(backend, device_type)
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        compute = quadratic_form_portable
    if autocast:
        dtype = torch.get_autocast_dtype(device_type)
        x, weight = (tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in (x, weight))
        with torch.autocast(device_type, enabled=False):
            flat = compute(x.reshape(-1, x.shape[-1]), weight.to(x.dtype))
    else:
        flat = compute(x.reshape(-1, x.shape[-1]), weight)
    return flat.reshape(*x.shape[:-1], weight.shape[0])


def _pick(name: Optional[str], device_type: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    check_backend(name)
    if name is None:
        name = available_backends(device_type)[0]
    backend = _BACKENDS[name]
    reason = backend.why_unusable(device_type)
    if reason is not None:
        usable = ', '.join(map(repr, available_backends(device_type)))
        raise RuntimeError(f'backend {name!r} cannot run on {device_type!r}: {reason} Usable there: {usable}.')
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
