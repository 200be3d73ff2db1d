"""How timm comes to know the models.

torch calls the entry point below at the end of `import torch`. That imports this module, which leaves a hook that
registers the models as soon as `timm.models` has been imported; `import dit_timm` does the same. Neither imports torch
or timm.

`DIT_TIMM_AUTOLOAD=0` in the environment leaves no hook; `dit_timm.register()` then registers the models.
"""

import importlib
import os
import warnings
from typing import Any

from wrapt import register_post_import_hook

from .version import __version__


def register() -> None:
    """Register the models in timm's registry. Done automatically unless DIT_TIMM_AUTOLOAD=0; harmless when repeated.

    Raises:
        ImportError: timm is missing or does not offer what the models are built from.
    """
    importlib.import_module('.models', __package__)


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


def torch_entry_point() -> None:
    """Called by torch at the end of `import torch` (group torch.backends); the import of this module did the work."""


if os.environ.get('DIT_TIMM_AUTOLOAD', '1') != '0':
    register_post_import_hook(_register_after_timm, 'timm.models')
