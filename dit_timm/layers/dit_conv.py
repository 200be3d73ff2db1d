"""A convolution that also receives a quadratic term, and the surgery that gives one to a convolution.

Paper: "Dendritic Integration Inspired Artificial Neural Networks Capture Data Correlation", Liu, Ma, Li, Zhou,
NeurIPS 2024. The ImageNet form: `y = conv(x) + Q(norm(x))`, by default without a norm.
"""

from types import FunctionType
from typing import TYPE_CHECKING, Callable, Dict, Optional, Tuple, Type, Union, cast

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame, pad_same
from torch import nn

from .instance_norm import InstanceNorm2d
from .quadratic import ChannelQuadratic2d

Norm = Union[str, Callable[[int], nn.Module], None]

_NORMS = {'instance': InstanceNorm2d}


def _forward_as(name: str, cls: Type[nn.Module]) -> Callable:
    """The forward of a class under another name: TorchScript knows no super(), and compiles methods by name."""
    forward = cls.forward
    renamed = FunctionType(forward.__code__, forward.__globals__, name, forward.__defaults__, forward.__closure__)
    renamed.__annotations__ = forward.__annotations__
    return renamed


class _DendriticConv2d(nn.Conv2d if TYPE_CHECKING else object):
    """Mixin over a Conv2d class: `forward(x) = conv_forward(x) + quadratic(quadratic_norm(x))`.

    The linear part stays the convolution's own (`conv_forward` is the forward of the Conv2d class), and so do its
    parameters and their names; the new parameters are under `quadratic` and `quadratic_norm`.
    """

    if TYPE_CHECKING:
        # For readers alone: TorchScript reads what is annotated too.
        conv_forward: Callable[[torch.Tensor], torch.Tensor]
        quadratic: ChannelQuadratic2d
        quadratic_norm: nn.Module
        pads_same: bool
        crops: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W'), as the convolution does."""
        y = self.conv_forward(x)
        x = self.quadratic_norm(x)
        if self.pads_same:
            # Lists are what TorchScript, for which timm annotates it, makes of tuples.
            x = pad_same(x, self.weight.shape[-2:], self.stride, self.dilation)  # pyright: ignore[reportArgumentType]
        q = self.quadratic(x)
        if self.crops:
            q = q[..., :y.shape[-2], :y.shape[-1]]
        return y + q


class DitConv2d(_DendriticConv2d, nn.Conv2d):
    """An `nn.Conv2d` that also owns a `ChannelQuadratic2d`: `y = conv(x) + Q(norm(x))`.

    The quadratic term sees all input channels, also of a grouped convolution, at the position under the
    centre of the kernel, and is sampled at the convolution's stride. It starts at zero: a new DitConv2d computes
    what its convolution computes.

    Args:
        *args: As for `nn.Conv2d`.
        quadratic_norm: Norm in front of the quadratic term: None, 'instance', or a callable that maps the number of
            input channels to a module.
        backend: See `dit_timm.ops.quadratic_form`.
        **kwargs: As for `nn.Conv2d`, device and dtype included.

    Raises:
        ValueError: The geometry has no position under the centre of the kernel for every output (more padding than
            half the kernel), or `quadratic_norm` is unknown.
    """

    conv_forward = _forward_as('conv_forward', nn.Conv2d)

    def __init__(self, *args, quadratic_norm: Norm = None, backend: Optional[str] = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        _grow(self, quadratic_norm, backend)


def add_dendrite(conv: nn.Conv2d, quadratic_norm: Norm = None, backend: Optional[str] = None) -> nn.Conv2d:
    """Turn a convolution into a dendritic one, in place: its function is unchanged until it is trained.

    The module stays the same object with its parameters, hooks, device and mode; it gains `quadratic` and
    `quadratic_norm`, and its class becomes DitConv2d, or the like for timm's own convolutions.

    Args:
        conv: An `nn.Conv2d`, or timm's Conv2dSame, StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame.
        quadratic_norm: See `DitConv2d`.
        backend: See `dit_timm.ops.quadratic_form`.

    Returns:
        `conv`.

    Raises:
        TypeError: `conv` is of another class, or has no input position under the centre of its kernel for every
            output (more padding than half the kernel).
        ValueError: See `DitConv2d`.
    """
    reason = why_not_dendritic(conv)
    if reason is not None:
        raise TypeError(reason)
    _grow(cast(_DendriticConv2d, conv), quadratic_norm, backend)
    conv.__class__ = _DENDRITIC[type(conv)]
    return conv


def why_not_dendritic(module: nn.Module) -> Optional[str]:
    """Say why a module cannot be given a dendrite, or return None if it can."""
    name = type(module).__name__
    if isinstance(module, _DendriticConv2d):
        return f'a {name} has a dendrite already.'
    if not isinstance(module, nn.Conv2d) or type(module) not in _DENDRITIC:
        accepted = ', '.join(cls.__name__ for cls in _DENDRITIC)
        return f'expected one of the convolutions {accepted}; got a {name}.'
    return _why_not_centred(module)


def _grow(conv: _DendriticConv2d, quadratic_norm: Norm, backend: Optional[str]) -> None:
    reason = _why_not_centred(conv)
    if reason is not None:
        raise ValueError(reason)
    height, width = conv.stride
    conv.quadratic_norm = _create_norm(quadratic_norm, conv.in_channels).train(conv.training)
    conv.quadratic = ChannelQuadratic2d(
        conv.in_channels,
        conv.out_channels,
        stride=(height, width),
        offset=_centre(conv),
        backend=backend,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    ).train(conv.training)
    # Where the padding is not exactly half the kernel, more positions are sampled than the convolution has outputs.
    # timm's 'same' convolutions pad their input by themselves, by an amount that depends on its size.
    conv.pads_same = isinstance(conv, Conv2dSame) or getattr(conv, 'same_pad', False)
    conv.crops = conv.padding != 'same' and any(
        d * (k - 1) != 2 * p for d, k, p in zip(conv.dilation, conv.kernel_size, _padding(conv))
    )


def _why_not_centred(conv: nn.Conv2d) -> Optional[str]:
    """Say why no input position lies under the centre of the kernel for every output, or return None if one does."""
    if min(_centre(conv)) < 0:
        return (
            f'padding must not exceed half the kernel, dilation included; got padding={conv.padding}, '
            f'kernel_size={conv.kernel_size}, dilation={conv.dilation} in a {type(conv).__name__}.'
        )
    return None


def _create_norm(norm: Norm, in_chs: int) -> nn.Module:
    if norm is None:
        return nn.Identity()
    if callable(norm):
        return norm(in_chs)
    if norm not in _NORMS:
        raise ValueError(f'quadratic_norm must be None, a callable or one of {list(_NORMS)}; got {norm!r}.')
    return _NORMS[norm]()


def _padding(conv: nn.Conv2d) -> Tuple[int, ...]:
    return (0, 0) if isinstance(conv.padding, str) else conv.padding


def _centre(conv: nn.Conv2d) -> Tuple[int, int]:
    """The input position under the centre of the kernel, for output position (0, 0)."""
    if conv.padding == 'same':
        return 0, 0
    row, column = (d * (k - 1) // 2 - p for d, k, p in zip(conv.dilation, conv.kernel_size, _padding(conv)))
    return row, column


def _dendritic(cls: Type[nn.Module]) -> Type[nn.Conv2d]:
    """The dendritic class of a Conv2d class, as a class of this module so that it can be pickled."""
    name = f'Dit{cls.__name__}'
    created = type(name, (_DendriticConv2d, cls), {
        'conv_forward': _forward_as('conv_forward', cls),
        '__module__': __name__,
    })
    globals()[name] = created
    return created


_DENDRITIC: Dict[Type[nn.Module], Type[nn.Conv2d]] = {
    nn.Conv2d: DitConv2d,
    **{cls: _dendritic(cls) for cls in (Conv2dSame, StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)},
}
