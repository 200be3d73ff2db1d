"""Checkpoints that the authors' training code wrote, by our names and in our shapes."""

from typing import Any, Dict, Mapping

import torch


def unwrap(checkpoint: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    """Take the weights out of a training checkpoint, without the prefix of (Distributed)DataParallel.

    Args:
        checkpoint: Weights, or a dict that holds them under 'state_dict'.
    """
    state_dict = checkpoint.get('state_dict', checkpoint)
    return {key.removeprefix('module.'): value for key, value in state_dict.items()}


def square(quadratic: torch.Tensor) -> torch.Tensor:
    """Shape the authors' quadratic weights, (O, C * C), as ours, (O, C, C). The order of the entries is the same."""
    channels = round(quadratic.shape[1] ** 0.5)
    return quadratic.reshape(-1, channels, channels)


def is_cifar(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether weights come from the authors' CIFAR training."""
    return 'linear.weight' in state_dict


def from_cifar(state_dict: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Give the weights of the authors' CIFAR training our names and shapes."""
    out = {}
    for key, value in state_dict.items():
        if key.endswith('.quadratic_layer.quadratic'):
            key = key.replace('.quadratic_layer.quadratic', '.quadratic.weight')
            value = square(value)
        key = key.replace('.ln_in.', '.quadratic_norm.').replace('.shortcut.', '.downsample.')
        out[key.replace('linear.', 'fc.')] = value
    return out
