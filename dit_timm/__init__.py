"""Dendritic CNNs (Dit-CNNs) for timm.

Installed, the package is known to timm without being imported: torch calls the entry point below at the end of
`import torch`, which imports this module, which leaves a hook that registers the models as soon as `timm.models` has
been imported. `import dit_timm` does the same. Neither imports torch or timm.

`DIT_TIMM_AUTOLOAD=0` in the environment leaves no hook; `dit_timm.register()` then registers the models.
"""

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any, List

from wrapt import register_post_import_hook

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .layers import (
        ChannelQuadratic2d as ChannelQuadratic2d,
        DitConv2d as DitConv2d,
        add_dendrites as add_dendrites,
        set_backend as set_backend,
    )
    from .models.checked import load_pretrained_checked as load_pretrained_checked
    from .ops import available_backends as available_backends, quadratic_form as quadratic_form

# Public names, resolved when they are first used, so that importing the package stays light.
_LAZY = {
    'ChannelQuadratic2d': '.layers',
    'DitConv2d': '.layers',
    'add_dendrites': '.layers',
    'available_backends': '.ops',
    'load_pretrained_checked': '.models.checked',
    'quadratic_form': '.ops',
    'set_backend': '.layers',
}

__all__ = ['__version__', 'register', *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_LAZY[name], __name__), name)


def __dir__() -> List[str]:
    return sorted({*globals(), *_LAZY})


def register() -> None:
    """Register the models in timm's registry. Done automatically unless DIT_TIMM_AUTOLOAD=0; harmless when repeated.

    Raises:
        ImportError: timm is missing or does not offer what the models are built from.
    """
    importlib.import_module('.models', __name__)


def _register_after_timm(_timm_models: Any) -> None:
    # Importing timm must work for someone who only has us installed, whatever is wrong with us.
    try:
        register()
    except Exception as error:
        warnings.warn(
            f'dit_timm {__version__} could not register all of its models in timm ({type(error).__name__}: {error}). '
            f'dit_timm.register() gives the full error; DIT_TIMM_AUTOLOAD=0 turns the registration off.',
            RuntimeWarning,
            stacklevel=2,
        )


def _torch_entry_point() -> None:
    """Called by torch at the end of `import torch` (group torch.backends); the import of this module did the work."""


if os.environ.get('DIT_TIMM_AUTOLOAD', '1') != '0':
    register_post_import_hook(_register_after_timm, 'timm.models')
