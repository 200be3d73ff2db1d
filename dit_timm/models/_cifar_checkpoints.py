"""Reading weights into the CIFAR networks: the authors' names, and other input sizes."""

import logging
from typing import Dict, Mapping

import torch
import torch.nn.functional as F

from ._checkpoints import square

_logger = logging.getLogger(__name__)


def is_authors(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether weights come from the authors' CIFAR training."""
    return 'linear.weight' in state_dict


def from_authors(state_dict: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Give the authors' weights our names and shapes."""
    out = {}
    for key, value in state_dict.items():
        if key.endswith('.quadratic_layer.quadratic'):
            key = key.replace('.quadratic_layer.quadratic', '.quadratic.weight')
            value = square(value)
        key = key.replace('.ln_in.', '.quadratic_norm.').replace('.shortcut.', '.downsample.')
        out[key.replace('linear.', 'fc.')] = value
    return out


def resize_norm(
        state_dict: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor],
) -> Dict[str, torch.Tensor]:
    """Interpolate the affine maps of the quadratic term's norm, the only weights that know the input size.

    Args:
        state_dict: Weights, whose maps have shape (H, W).
        own: Those of the network, for the size that it needs.
    """
    resized = dict(state_dict)
    for key, value in state_dict.items():
        if '.quadratic_norm.' in key and key in own and value.shape != own[key].shape:
            size = tuple(own[key].shape)
            _logger.info(f'Interpolated {key} from {tuple(value.shape)} to {size}.')
            resized[key] = F.interpolate(value.float()[None, None], size, mode='bilinear')[0, 0]
    return resized
