"""Which precision the quadratic form computes in."""

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of products and sums for inputs of `dtype`.

    A product of activations squares their range: in float16 it overflows from |x| = 256 on although the
    weighted sum may be small. Half-precision inputs are therefore multiplied and summed in float32.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32
