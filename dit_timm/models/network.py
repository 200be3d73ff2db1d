"""What networks of timm have beside what every module has."""

from typing import Any, Callable, Dict

from torch import nn


class Network(nn.Module):
    """A network of timm, for type checkers: what all have, and timm declares in no common class.

    Attributes:
        num_classes: Classes that it tells apart.
        pretrained_cfg: timm's description of its weights and its input.
        set_grad_checkpointing: Computes activations once more in the backward pass, where the network can.
    """
    num_classes: int
    pretrained_cfg: Dict[str, Any]
    set_grad_checkpointing: Callable[[], None]
