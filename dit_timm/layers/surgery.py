"""Give any CNN dendrites, and choose how those of a network are computed."""

import difflib
import fnmatch
from typing import Dict, List, Optional, Sequence, Union, cast

from torch import nn

from ..ops import check_backend
from .dit_conv import Norm, add_dendrite, why_not_dendritic
from .quadratic import ChannelQuadratic2d
from .quadratic_linear import QuadraticLinear


def add_dendrites(
        model: nn.Module,
        targets: Union[str, Sequence[str]],
        *,
        quadratic_norm: Norm = None,
        backend: Optional[str] = None,
) -> nn.Module:
    """Turn a CNN into a Dit-CNN, in place: the convolutions named gain a quadratic term across channels.

    The function of the model is unchanged until it is trained, since the new weights start at zero. Parameter names
    stay as they were; `<target>.quadratic.weight`, shape (O, C, C), is added. Call this before an optimizer, an EMA
    copy or a compiled version of the model is made.

    Args:
        model: Any module with `nn.Conv2d` inside, such as a timm CNN.
        targets: Names of convolutions as in `model.named_modules()`, or shell-style patterns ('layer2.*.conv2').
            A name must be a convolution; a pattern selects the convolutions among what it matches.
        quadratic_norm: Norm in front of each quadratic term, see `dit_timm.layers.DitConv2d`.
        backend: See `dit_timm.ops.quadratic_form`.

    Returns:
        `model`.

    Raises:
        ValueError: A target names nothing in the model, or a pattern matches no convolution; near matches are listed.
        TypeError: A target is not a convolution that can have a dendrite. The model is then left as it was.
    """
    names = [targets] if isinstance(targets, str) else list(targets)
    if not names:
        raise ValueError('targets must name at least one convolution; got none.')
    modules = dict(model.named_modules())
    selected: Dict[str, nn.Module] = {}
    for target in names:
        for name in _select(modules, target):
            selected[name] = modules[name]
    for name, module in selected.items():
        reason = why_not_dendritic(module)
        if reason is not None:
            hint = '' if isinstance(module, nn.Conv2d) else _near(modules, name)
            raise TypeError(f'cannot give a dendrite to {name!r}: {reason}{hint}')
    for module in selected.values():
        add_dendrite(cast(nn.Conv2d, module), quadratic_norm=quadratic_norm, backend=backend)
    return model


def set_backend(model: nn.Module, backend: Optional[str]) -> nn.Module:
    """Choose how all quadratic terms of a network are computed, in place.

    Args:
        model: A Dit-CNN.
        backend: See `dit_timm.ops.quadratic_form`; None for the automatic choice.

    Returns:
        `model`.

    Raises:
        ValueError: There is no such backend, or the model has no quadratic term.
    """
    check_backend(backend)
    terms = [
        module for module in model.modules()
        if isinstance(module, ChannelQuadratic2d) or isinstance(module, QuadraticLinear) and module.rank is None
    ]
    if not terms:
        raise ValueError(f'{type(model).__name__} has no quadratic term whose backend could be set.')
    for term in terms:
        term.backend = backend
    return model


def _select(modules: Dict[str, nn.Module], target: str) -> List[str]:
    if target in modules:
        return [target]
    is_pattern = any(character in target for character in '*?[')
    if is_pattern:
        matches = [name for name in fnmatch.filter(modules, target) if isinstance(modules[name], nn.Conv2d)]
        if matches:
            return matches
    problem = 'matches no convolution' if is_pattern else 'is not a module'
    raise ValueError(f'target {target!r} {problem} of the model.{_near(modules, target)}')


def _near(modules: Dict[str, nn.Module], target: str) -> str:
    """A sentence with the convolutions whose names come nearest to, or lie inside, the target."""
    convs = [name for name, module in modules.items() if why_not_dendritic(module) is None]
    if not convs:
        return ' The model has no convolution that could have a dendrite.'
    inside = [name for name in convs if name.startswith(f'{target}.')][:5]
    near = inside or difflib.get_close_matches(target, convs, n=5, cutoff=0.3) or convs[:5]
    return f' Convolutions with near names: {", ".join(near)}.'
