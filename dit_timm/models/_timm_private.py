"""What timm offers to its own models only. The one place that a new timm release could break."""

from timm.models._features import feature_take_indices as feature_take_indices
