"""bfloat16 on CPUs for which torch has no kernels of it, at the speed of float32.

There torch multiplies bfloat16 in scalar loops, and a training step takes many times as long as in float32.
"""

from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
# What forward and backward passes multiply with. Where nothing needs gradients, layers arrive as they are called.
_PRODUCTS = {
    _aten.convolution.default, _aten.convolution_backward.default,
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default,
    _aten.conv1d.default, _aten.conv1d.padding, _aten.conv2d.default, _aten.conv2d.padding,
    _aten.linear.default, _aten.matmul.default,
}


def has_bfloat16_kernels() -> bool:
    """Whether torch has bfloat16 kernels for this CPU: on x86 from AVX-512 on, be it without units for bfloat16."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class WideBfloat16(TorchDispatchMode):
    """Convolutions, linear layers and matrix products of bfloat16 multiply in float32.

    They compute what units for bfloat16 do: products are exact, sums are float32, results are rounded to bfloat16. Only
    the order of the sums is another, and denormal numbers are not zero. It stands below autocast and autograd: backward
    passes multiply so if they run inside. Fused kernels, such as those of attention, it leaves as they are.

    torch.compile compiles nothing that is called inside.
    """

    def __torch_dispatch__(
            self, function: Callable, types: Tuple[type, ...], args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _PRODUCTS or not _is_bfloat16(args[0]):
            return function(*args, **kwargs)
        results = function(*tree_map_only(torch.Tensor, torch.Tensor.float, args), **kwargs)
        return tree_map_only(torch.Tensor, torch.Tensor.bfloat16, results)


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 and value.device.type == 'cpu'
