"""The options of training, evaluation and prediction: dataclasses whose fields are the flags, with timm's names."""
