"""Dendritic CNNs (Dit-CNNs) for timm.

Installed, the package is known to timm without being imported; see `dit_timm._autoload`. Importing it imports neither
torch nor timm.
"""

import importlib
from typing import TYPE_CHECKING, Any, List

from ._autoload import register as register
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .layers import (
        ChannelQuadratic2d as ChannelQuadratic2d,
        DitConv2d as DitConv2d,
        QuadraticLinear as QuadraticLinear,
        add_dendrites as add_dendrites,
        set_backend as set_backend,
    )
    from .ops import available_backends as available_backends, quadratic_form as quadratic_form
    from .pretrained.checked import load_pretrained_checked as load_pretrained_checked

# Public names, resolved when they are first used, so that importing the package stays light.
_LAZY = {
    'ChannelQuadratic2d': '.layers',
    'DitConv2d': '.layers',
    'QuadraticLinear': '.layers',
    'add_dendrites': '.layers',
    'available_backends': '.ops',
    'load_pretrained_checked': '.pretrained.checked',
    'quadratic_form': '.ops',
    'set_backend': '.layers',
}

__all__ = [
    'ChannelQuadratic2d',
    'DitConv2d',
    '__version__',
    'add_dendrites',
    'available_backends',
    'load_pretrained_checked',
    'quadratic_form',
    'register',
    'set_backend',
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_LAZY[name], __name__), name)


def __dir__() -> List[str]:
    return sorted({*globals(), *_LAZY})
