"""What timm offers to its own models only, and may change in any release."""

from typing import Optional, Tuple

import timm
from timm.models._features import feature_take_indices as feature_take_indices

# Public from a later release than the oldest that will do.
from timm.models._hub import save_for_hf as save_for_hf

TIMM_VERSION: Tuple[int, ...] = tuple(map(int, timm.__version__.split('.')[:3]))

# What a cfg calls its weights so that timm looks for no pickle. Before 1.0.29 timm would read them as one, but looks
# for safetensors first where the cfg has no name.
SAFETENSORS: Optional[str] = 'model.safetensors' if TIMM_VERSION >= (1, 0, 29) else None
