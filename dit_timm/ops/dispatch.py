"""The one public function of the quadratic form."""

from typing import Optional

import torch

from .backends import pick_backend
from .portable import quadratic_form_portable


def quadratic_form(x: torch.Tensor, weight: torch.Tensor, backend: Optional[str] = None) -> torch.Tensor:
    """Weighted sum of all pairwise products of channels, `q_o = sum_ij weight[o, i, j] x_i x_j`.

    The quadratic term of a dendrite (Liu et al., "Dendritic Integration Inspired Artificial Neural Networks Capture
    Data Correlation", NeurIPS 2024), at every position of the leading dimensions of `x`.

    Half precision is summed in float32. Its products are float32 too, except where matrix units multiply bfloat16:
    there they are rounded to it. On a GPU, float32 is rounded to TF32 where
    `torch.backends.cuda.matmul.fp32_precision` is 'tf32' (`allow_tf32` before torch 2.9), and products of float16 are
    always.

    Without a `backend` small forms are computed otherwise where that was measured faster. On a CPU those of few
    outputs, and in eager mode those of few pixels, are 'contracted'. On a GPU, in eager mode, those of at most 32 MiB
    of products are materialised: summed by `torch.matmul`, and autograd keeps the products for backward.

    Under autocast both inputs are first cast to the autocast dtype, as those of a convolution are. Scripted, traced
    and exported graphs hold plain torch operators whatever the backend (those of `torch.export` from torch 2.7 on).

    Args:
        x: Inputs of shape (..., C), floating point.
        weight: Weights of shape (O, C, C), with the device of `x`, and outside autocast its dtype.
        backend: None for the fastest that is usable, or a name from `available_backends()`. 'reference' is the
            formula written out, and needs memory for all P * C * C products; 'chunked' needs memory for a bounded
            tile of them, in plain torch; 'contracted' are matrix products with the weights as they are, for few outputs
            or pixels; 'native' are kernels for the CPU, compiled with the package; 'triton' are kernels for GPUs. A
            backend asked for by name is never replaced by another.

    Returns:
        Outputs of shape (..., O), with the dtype of `x`, or the autocast dtype under autocast.

    Raises:
        ValueError: Shapes or devices do not match, or `backend` is unknown.
        TypeError: A dtype is not floating point, or the dtypes differ outside autocast.
        RuntimeError: The backend cannot run on the device and dtype of `x`.
    """
    if torch.jit.is_scripting():
        flat = quadratic_form_portable(x.reshape(-1, x.shape[-1]), weight)
        return flat.reshape(list(x.shape[:-1]) + [weight.shape[0]])
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
    if _is_exporting() or torch.jit.is_tracing():
        if backend is not None:
            # It may not be there.
            pick_backend(backend, x, weight)
        compute = quadratic_form_portable
    else:
        compute = pick_backend(backend, x, weight)
    # A view costs as much as a small form, forward and backward.
    flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    if autocast:
        with torch.autocast(device_type, enabled=False):
            output = compute(flat, weight)
    else:
        output = compute(flat, weight)
    return output if x.ndim == 2 else output.reshape(*x.shape[:-1], weight.shape[0])


# Dynamo of torch 2.8 would take `is_exporting` for true in every graph that it traces.
@torch.compiler.assume_constant_result
def _is_exporting() -> bool:
    # torch.compiler says so from torch 2.7 on.
    return getattr(torch.compiler, 'is_exporting', lambda: False)()


# Dynamo of torch 2.11 cannot trace into it.
@torch.compiler.assume_constant_result
def _autocast_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


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
