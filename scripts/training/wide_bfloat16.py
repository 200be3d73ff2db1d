"""Autocast to bfloat16 at the speed of float32, on CPUs that have no units for bfloat16.

There torch multiplies bfloat16 in scalar loops: on an AMD EPYC with AVX2 a training step of dit_resnet20 takes ten
times as long as in float32, a linear layer with 384 inputs and 1,536 outputs twenty-five times.
"""

from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_FUNCTIONS = (F.conv2d, F.linear)


def has_bfloat16_units() -> bool:
    """Whether torch multiplies bfloat16 in vector or matrix units of this CPU."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class WideBfloat16(TorchFunctionMode):
    """Inside `torch.autocast('cpu', torch.bfloat16)`: convolutions and linear layers multiply in float32.

    What units for bfloat16 compute: operands, results and gradients are rounded to bfloat16, products are exact, sums
    are float32. Only the order of the sums is another.
    """

    def __torch_function__(
            self, function: Callable, types: Tuple[type, ...], args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _FUNCTIONS:
            return function(*args, **kwargs)
        with torch.autocast('cpu', enabled=False):
            kwargs = {name: _rounded(value) for name, value in kwargs.items()}
            return function(*map(_rounded, args), **kwargs).bfloat16()


def _rounded(value: Any) -> Any:
    return value.bfloat16().float() if isinstance(value, torch.Tensor) else value
