"""Registers a backend of the quadratic form as torch operators, and these as functions with derivatives.

Each backend is three operators, on x (P, C), weight (O, C, C) and grad (P, O):

    forward      q[p, o]    = sum_ij weight[o, i, j] x[p, i] x[p, j]
    grad_x       h[p, i]    = sum_oj grad[p, o] (weight[o, i, j] + weight[o, j, i]) x[p, j]
    grad_weight  w[o, i, j] = sum_p grad[p, o] x[p, i] x[p, j]

They are closed under differentiation: q and w are quadratic forms of x, and all else is linear. The derivative of a
form along v is its polar form, `sum_ij weight[o, i, j] (x_i v_j + v_i x_j)`: half of the difference of the forms of
x + v and x - v. So derivatives of any order, in forward and in reverse mode, take nothing but these three.

Why autograd.Function around operators: one with `jvp` and `vmap` serves torch.func and forward mode, which operators
with registered gradients do not. torch.compile traces the operators, with the same gradients.
"""

import functools
import operator
from typing import Any, Callable, NamedTuple, Optional, Tuple, Type

import torch
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.utils.flop_counter import register_flop_formula

from .portable import quadratic_form_portable
from .precision import accumulation_dtype

_LIBRARY = torch.library.Library('dit_timm', 'FRAGMENT')


class Operator(NamedTuple):
    """An operator of torch, and the Python function behind it."""
    overload: Callable
    compute: Callable


class Operators(NamedTuple):
    """The three operators of a backend; see the module."""
    forward: Operator
    grad_x: Operator
    grad_weight: Operator


def register_operators(
        name: str,
        forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        grad_x: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        grad_weight: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Register the three computations as `dit_timm::quadratic_<name>`, `..._grad_x` and `..._grad_weight`.

    `torch.compile`, activation checkpointing and the distributed wrappers then see one node each, and FlopCounterMode
    counts them. For backward only the inputs are kept, and only the gradients that are needed are computed.

    Args:
        name: Name of the backend.
        forward: Maps x (P, C) of any strides and weight (O, C, C) to a contiguous (P, O).
        grad_x: Maps grad (P, O) of any strides, x and weight to the gradient of x, a contiguous (P, C).
        grad_weight: Maps grad and x to the gradient of the weight, a contiguous (O, C, C).

    Returns:
        A function of x and weight, differentiable to any order in forward and reverse mode, which torch.func can
        transform. Under forward mode within forward mode, and in a compiled graph that torch.func transforms, it is
        plain torch, and keeps products for backward.
    """
    operators = Operators(
        _register(f'quadratic_{name}', 'Tensor x, Tensor weight', forward, _form_shape, _form_flops),
        _register(
            f'quadratic_{name}_grad_x', 'Tensor grad, Tensor x, Tensor weight', grad_x, _grad_x_shape, _grad_x_flops,
        ),
        _register(
            f'quadratic_{name}_grad_weight', 'Tensor grad, Tensor x', grad_weight, _grad_weight_shape,
            _grad_weight_flops,
        ),
    )
    for registered, function in zip(operators, (_Form, _GradX, _GradWeight)):
        _register_autograd(registered, function, operators)

    def compute(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            # A Function with a jvp is not traced, and the tangent of an operator is taken for zero.
            return quadratic_form_portable(x, weight) if _is_transformed() else operators.forward.overload(x, weight)
        if torch._C._are_functorch_transforms_active() and _forward_levels() > 1:
            # torch takes the tangent of the tangent of a Function for zero.
            return quadratic_form_portable(x, weight)
        return _apply(_Form, x, weight, operators)

    return compute


# Dynamo cannot trace into it.
@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    """Whether torch.func or forward mode is active."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _forward_levels() -> int:
    """How many levels of forward mode of torch.func are nested."""
    return sum(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters())


def _apply(function: Type['_Function'], *inputs: Any) -> torch.Tensor:
    """Apply a function, or only its operator where no derivative is recorded, as in a first-order backward."""
    if torch._C._are_functorch_transforms_active():
        return function.transformable.apply(*inputs)
    if torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0:
        return function.apply(*inputs)
    return function.compute(*inputs)


def _below_autograd(called: Operator, *inputs: torch.Tensor) -> torch.Tensor:
    """Call an operator below autograd: recording its own gradient would take longer than a small form.

    And past the dispatcher, where nothing stands between it and the computation: that is a quarter of a small form.
    """
    if _is_plain(*inputs):
        return called.compute(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return called.overload(*inputs)


def _plain_keys(device: str) -> int:
    """The dispatch keys, as a bit set, of a tensor that has memory on a device, and nothing else about it."""
    keys = (device, 'ADInplaceOrView', f'Autograd{device}', f'Autocast{device}')
    return functools.reduce(
        operator.or_, (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in keys),
    ).raw_repr()


_PLAIN_KEYS = {_plain_keys('CPU'), _plain_keys('CUDA')}


def _is_plain(*inputs: torch.Tensor) -> bool:
    """Whether nothing would hear of an operator's call on tensors, and it would reach its function as they are.

    Modes (FlopCounterMode, fake tensors), transforms, forward mode, the profiler, and tensors with more keys
    (subclasses, those of a vmap, those whose sign is still to be changed) want the dispatcher.
    """
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and not torch.autograd._profiler_enabled()
        and all(torch._C._dispatch_keys(tensor).raw_repr() in _PLAIN_KEYS for tensor in inputs)
    )


def _register(name: str, arguments: str, compute: Callable, shape: Callable, flops: Callable) -> Operator:
    _LIBRARY.define(f'{name}({arguments}) -> Tensor', tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, compute, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'dit_timm::{name}', shape, lib=_LIBRARY)
    packet = getattr(torch.ops.dit_timm, name)
    register_flop_formula(packet)(flops)
    return Operator(packet.default, compute)


def _register_autograd(registered: Operator, function: type, operators: Operators) -> None:
    torch.library.register_autograd(
        registered.overload,
        lambda ctx, grad: function.backward(ctx, grad)[:-1],
        setup_context=lambda ctx, inputs, output: _save(ctx, (*inputs, operators)),
        lib=_LIBRARY,
    )


def _form_shape(x, weight):
    return x.new_empty(x.shape[0], weight.shape[0])


def _grad_x_shape(grad, x, weight):
    return x.new_empty(x.shape)


def _grad_weight_shape(grad, x):
    return x.new_empty(grad.shape[1], x.shape[1], x.shape[1])


# K = C (C + 1) / 2 products at each pixel, for each output a multiplication and an addition of each.
def _form_flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    (pixels, channels), outputs = x_shape, weight_shape[0]
    return pixels * channels * (channels + 1) * outputs


def _grad_x_flops(grad_shape, x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return _form_flops(x_shape, weight_shape)


def _grad_weight_flops(grad_shape, x_shape, *args, out_shape=None, **kwargs) -> int:
    return _form_flops(x_shape, grad_shape[1:])


class _Function(torch.autograd.Function):
    """A Function of tensors and, as the last input, the operators of a backend.

    Attributes:
        operator: The name of its operator.
        transformable: Its version for torch.func, which needs `forward` and `setup_context` apart; slower for small
            forms.
    """
    operator: str
    transformable: type

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.setup_context is torch.autograd.Function.setup_context:
            cls.transformable = type(f'{cls.__name__}Transformable', (cls,), {
                'forward': staticmethod(cls.compute),
                'setup_context': staticmethod(lambda ctx, inputs, output: _save(ctx, inputs)),
            })

    @classmethod
    def compute(cls, *inputs: Any) -> torch.Tensor:
        """The value alone."""
        *tensors, operators = inputs
        return _below_autograd(getattr(operators, cls.operator), *tensors)

    @classmethod
    def forward(cls, ctx: Any, *inputs: Any) -> torch.Tensor:
        """The value, and what derivatives need: the inputs."""
        _save(ctx, inputs)
        return cls.compute(*inputs)


class _Form(_Function):
    """The form, (P, O)."""

    operator = 'forward'

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        return (
            _apply(_GradX, grad, x, weight, ctx.operators) if needs_x else None,
            _apply(_GradWeight, grad, x, ctx.operators) if needs_weight else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, x_tangent, weight_tangent, _) -> torch.Tensor:
        x, weight = ctx.saved_tensors
        return _sum(
            x_tangent is not None and _polar_form(x, x_tangent, weight, ctx.operators),
            weight_tangent is not None and _apply(_Form, x, weight_tangent, ctx.operators),
        )

    @staticmethod
    def vmap(info: Any, in_dims: Tuple[Any, ...], x, weight, operators) -> Tuple[torch.Tensor, int]:
        x_dim, weight_dim, _ = in_dims
        if weight_dim is None:
            # More pixels.
            x = x.movedim(x_dim, 0)
            return _apply(_Form, x.flatten(0, 1), weight, operators).unflatten(0, x.shape[:2]), 0
        if x_dim is None:
            # More outputs.
            weight = weight.movedim(weight_dim, 0)
            return _apply(_Form, x, weight.flatten(0, 1), operators).unflatten(1, weight.shape[:2]), 1
        pairs = zip(x.unbind(x_dim), weight.unbind(weight_dim))
        return torch.stack([_apply(_Form, *pair, operators) for pair in pairs]), 0


class _GradX(_Function):
    """The gradient of x, (P, C): linear in grad, in x and in weight."""

    operator = 'grad_x'

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        inner, x, weight = ctx.saved_tensors
        needs_inner, needs_x, needs_weight = ctx.needs_input_grad[:3]
        return (
            _polar_form(x, grad, weight, ctx.operators) if needs_inner else None,
            _apply(_GradX, inner, grad, weight, ctx.operators) if needs_x else None,
            _polar_grad_weight(inner, x, grad, ctx.operators) if needs_weight else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, grad_tangent, x_tangent, weight_tangent, _) -> torch.Tensor:
        grad, x, weight = ctx.saved_tensors
        return _sum(
            grad_tangent is not None and _apply(_GradX, grad_tangent, x, weight, ctx.operators),
            x_tangent is not None and _apply(_GradX, grad, x_tangent, weight, ctx.operators),
            weight_tangent is not None and _apply(_GradX, grad, x, weight_tangent, ctx.operators),
        )

    @staticmethod
    def vmap(info: Any, in_dims: Tuple[Any, ...], grad, x, weight, operators) -> Tuple[torch.Tensor, int]:
        grad, x = (_batched(tensor, dim, info.batch_size) for tensor, dim in zip((grad, x), in_dims))
        if in_dims[2] is None:
            # More pixels.
            flat = _apply(_GradX, grad.flatten(0, 1), x.flatten(0, 1), weight, operators)
            return flat.unflatten(0, x.shape[:2]), 0
        triples = zip(grad, x, weight.unbind(in_dims[2]))
        return torch.stack([_apply(_GradX, *triple, operators) for triple in triples]), 0


class _GradWeight(_Function):
    """The gradient of the weight, (O, C, C): linear in grad, a quadratic form of x."""

    operator = 'grad_weight'

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        inner, x = ctx.saved_tensors
        needs_inner, needs_x = ctx.needs_input_grad[:2]
        return (
            _apply(_Form, x, grad, ctx.operators) if needs_inner else None,
            _apply(_GradX, inner, x, grad, ctx.operators) if needs_x else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, grad_tangent, x_tangent, _) -> torch.Tensor:
        grad, x = ctx.saved_tensors
        return _sum(
            grad_tangent is not None and _apply(_GradWeight, grad_tangent, x, ctx.operators),
            x_tangent is not None and _polar_grad_weight(grad, x, x_tangent, ctx.operators),
        )

    @staticmethod
    def vmap(info: Any, in_dims: Tuple[Any, ...], grad, x, operators) -> Tuple[torch.Tensor, int]:
        grad_dim, x_dim, _ = in_dims
        if x_dim is None:
            # More outputs.
            grad = grad.movedim(grad_dim, 1)
            return _apply(_GradWeight, grad.flatten(1, 2), x, operators).unflatten(0, grad.shape[1:]), 0
        pairs = zip(_batched(grad, grad_dim, info.batch_size), x.unbind(x_dim))
        return torch.stack([_apply(_GradWeight, *pair, operators) for pair in pairs]), 0


def _save(ctx: Any, inputs: Tuple[Any, ...]) -> None:
    *tensors, ctx.operators = inputs
    ctx.save_for_backward(*tensors)
    if torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        ctx.save_for_forward(*tensors)


def _batched(tensor: torch.Tensor, dim: Optional[int], size: int) -> torch.Tensor:
    """A tensor with its dimension of vmap in front; expanded, if it has none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _sum(*terms: Any) -> torch.Tensor:
    """The sum of the terms that are not False."""
    total, *others = (term for term in terms if term is not False)
    for term in others:
        total = total + term
    return total


def _balanced(x: torch.Tensor, v: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x / a + v / b, x / a - v / b and a b / 2, where a and b are the largest values of each pixel.

    Otherwise the smaller summand would be lost in the rounding of the larger one. What is computed from the three does
    not depend on a and b, nor do its derivatives.
    """
    wide = accumulation_dtype(x.dtype)
    x, v = x.to(wide), v.to(wide)
    with torch.no_grad():
        a, b = _largest(x), _largest(v)
    return x / a + v / b, x / a - v / b, a * b / 2


def _largest(tensor: torch.Tensor) -> torch.Tensor:
    """The largest absolute value of each pixel, (P, 1); 1 where all are zero."""
    if tensor.shape[-1] == 0:
        return tensor.new_ones(*tensor.shape[:-1], 1)
    largest = tensor.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def _polar_form(x: torch.Tensor, v: torch.Tensor, weight: torch.Tensor, operators: Operators) -> torch.Tensor:
    """`sum_ij weight[o, i, j] (x[p, i] v[p, j] + v[p, i] x[p, j])`, (P, O)."""
    plus, minus, factor = _balanced(x, v)
    weight = weight.to(plus.dtype)
    # Not in one call: where v is zero both are the same to the last bit, at the same place of the same shape.
    difference = _apply(_Form, plus, weight, operators) - _apply(_Form, minus, weight, operators)
    return (difference * factor).to(x.dtype)


def _polar_grad_weight(
        grad: torch.Tensor, x: torch.Tensor, v: torch.Tensor, operators: Operators,
) -> torch.Tensor:
    """`sum_p grad[p, o] (x[p, i] v[p, j] + v[p, i] x[p, j])`, (O, C, C)."""
    plus, minus, factor = _balanced(x, v)
    grad = grad.to(plus.dtype) * factor
    return (_apply(_GradWeight, grad, plus, operators) - _apply(_GradWeight, grad, minus, operators)).to(x.dtype)
