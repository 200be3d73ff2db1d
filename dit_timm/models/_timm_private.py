"""What timm offers to its own models only, and may change in any release."""

from timm.models._features import feature_take_indices as feature_take_indices

# Public from a later release than the oldest that will do.
from timm.models._hub import save_for_hf as save_for_hf
