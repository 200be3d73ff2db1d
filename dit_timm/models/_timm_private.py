"""What timm offers to its own models only, and may change in any release."""

from timm.models._features import feature_take_indices as feature_take_indices
