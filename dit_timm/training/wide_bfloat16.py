"""bfloat16 on CPUs for which torch has no kernels of it, at the speed of float32.

There torch multiplies bfloat16 in scalar loops, and a training step takes many times as long as in float32.
"""

from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
# What forward and backward passes multiply with, below autograd. In inference mode other operators arrive here.
_PRODUCTS = {getattr(_aten, name).default for name in (
    'convolution', 'convolution_backward', 'mm', 'addmm', 'bmm', 'baddbmm', 'addbmm', 'mv', 'addmv', 'dot',
)}


def has_bfloat16_kernels() -> bool:
    """Whether torch has bfloat16 kernels for this CPU: on x86 from AVX-512 on, be it without units for bfloat16."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class WideBfloat16(TorchDispatchMode):
    """Convolutions, linear layers and matrix products of bfloat16 multiply in float32.

    They compute what units for bfloat16 do: products are exact, sums are float32, results are rounded to bfloat16. Only
    the order of the sums is another, and denormal numbers are not zero. It stands below autocast and autograd: backward
    passes multiply so if they run inside. Fused kernels, such as those of attention, it leaves as they are.

    Not for `torch.inference_mode`, where layers arrive whole, nor for torch.compile, which compiles nothing inside.
    """

    def __torch_dispatch__(
            self, function: Callable, types: Tuple[type, ...], args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _PRODUCTS or not _all_bfloat16(args):
            return function(*args, **kwargs)
        results = function(*tree_map_only(torch.Tensor, torch.Tensor.float, args), **kwargs)
        return tree_map_only(torch.Tensor, torch.Tensor.bfloat16, results)


def _all_bfloat16(values: Tuple[Any, ...]) -> bool:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return all(tensor.dtype == torch.bfloat16 and tensor.device.type == 'cpu' for tensor in tensors)
