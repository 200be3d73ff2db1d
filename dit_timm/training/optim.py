"""Frozen parameters, and groups of parameters with learning rates of their own."""

import inspect
import re
from typing import Any, Dict, List, Optional, Sequence

import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import InvalidInputError

# The weights of a quadratic term, and of the norm in front of it.
_QUADRATIC = re.compile(r'(^|\.)quadratic(_norm)?(\.|$)')


def is_quadratic(name: str) -> bool:
    """Whether a parameter belongs to a quadratic term, the norm in front of it included."""
    return _QUADRATIC.search(name) is not None


def freeze_all_but(model: nn.Module, patterns: Sequence[str]) -> int:
    """Freeze every parameter whose name no pattern is found in.

    Args:
        model: The network.
        patterns: Regular expressions; 'quadratic' stands for the quadratic terms and their norms.

    Returns:
        The number of parameters that are trained.

    Raises:
        InvalidInputError: A pattern is found in no name.
    """
    names = dict(model.named_parameters())
    trained = set()
    for pattern in patterns:
        found = {name for name in names if (is_quadratic(name) if pattern == 'quadratic' else re.search(pattern, name))}
        if not found:
            raise InvalidInputError(
                f'--train-only {pattern} is found in no parameter; the first are {list(names)[:5]}.'
            )
        trained |= found
    for name, parameter in names.items():
        parameter.requires_grad_(name in trained)
    return sum(names[name].numel() for name in trained)


def set_training(model: nn.Module) -> None:
    """Put a network into training mode, but norms that keep statistics and have no trained parameter."""
    model.train()
    for module in model.modules():
        if isinstance(module, _NormBase) and module.affine and not module.weight.requires_grad:
            module.eval()


def parameter_groups(
        model: nn.Module, weight_decay: float, quadratic_lr_scale: float, layer_decay: Optional[float] = None,
        decay_norms: bool = False,
) -> List[Dict[str, Any]]:
    """timm's groups of parameters, with the quadratic terms apart.

    A group's learning rate is `lr_scale` times what the schedule says: timm's schedulers multiply by it whatever
    they do, in warm-up and at the minimum too.

    Args:
        model: The network; what it does not train is left out.
        weight_decay: Weight decay.
        quadratic_lr_scale: Learning rate of quadratic terms and their norms, as a factor.
        layer_decay: Factor of the learning rate from layer to layer, from the head down; None for none.
        decay_norms: Decay biases and the weights of norms too, as the paper does on CIFAR; timm does not.

    Raises:
        InvalidInputError: This timm cannot decay norms.
    """
    exempt = () if decay_norms else getattr(model, 'no_weight_decay', tuple)()
    options: Dict[str, Any] = dict(weight_decay=weight_decay, no_weight_decay_list=exempt)
    if decay_norms:
        if 'weight_decay_exclude_1d' not in inspect.signature(param_groups_weight_decay).parameters:
            raise InvalidInputError(f'--decay-norms needs timm 1.0.16 or later; this is {timm.__version__}.')
        options['weight_decay_exclude_1d'] = False
    if layer_decay is None:
        groups = param_groups_weight_decay(model, **options)
    else:
        groups = param_groups_layer_decay(model, layer_decay=layer_decay, **options)
    quadratic = {id(parameter) for name, parameter in model.named_parameters() if is_quadratic(name)}
    split = []
    for group in groups:
        scale = group.get('lr_scale', 1.)
        for factor, wanted in ((1., False), (quadratic_lr_scale, True)):
            members: List[torch.Tensor] = [
                parameter for parameter in group['params'] if (id(parameter) in quadratic) == wanted
            ]
            if members:
                split.append({**group, 'params': members, 'lr_scale': scale * factor})
    return split
