"""Modules of a Dit-CNN."""

from .add_dendrites import add_dendrites as add_dendrites
from .dit_conv import DitConv2d as DitConv2d, add_dendrite as add_dendrite
from .instance_norm import InstanceNorm2d as InstanceNorm2d
from .quadratic import ChannelQuadratic2d as ChannelQuadratic2d

__all__ = ['ChannelQuadratic2d', 'DitConv2d', 'InstanceNorm2d', 'add_dendrite', 'add_dendrites']
