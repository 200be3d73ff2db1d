"""Common steps in reading checkpoints that the authors' training code wrote."""

from typing import Any, Dict

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
