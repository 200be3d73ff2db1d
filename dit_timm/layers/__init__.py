"""Modules of a Dit-CNN."""

# First of all, and whole: importing timm registers our models, which import the modules of this package. For the same
# reason they import from the modules, not from here.
import timm  # noqa: F401, I001

from .dit_conv import DitConv2d as DitConv2d, add_dendrite as add_dendrite
from .instance_norm import InstanceNorm2d as InstanceNorm2d
from .quadratic import ChannelQuadratic2d as ChannelQuadratic2d
from .quadratic_linear import QuadraticLinear as QuadraticLinear
from .surgery import add_dendrites as add_dendrites, set_backend as set_backend

__all__ = [
    'ChannelQuadratic2d', 'DitConv2d', 'InstanceNorm2d', 'QuadraticLinear', 'add_dendrite', 'add_dendrites',
    'set_backend',
]
