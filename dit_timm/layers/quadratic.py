"""The quadratic term of a dendrite as a layer.

Paper: "Dendritic Integration Inspired Artificial Neural Networks Capture Data Correlation", Liu, Ma, Li, Zhou,
NeurIPS 2024.
"""

from typing import Optional, Tuple, Union, cast

import torch
from timm.layers import to_2tuple
from torch import nn

from ..ops import check_backend, quadratic_form

# torch.fx records a call of this function as one node instead of tracing into it: the function looks at values
# (dtypes, devices, the autocast state) that do not exist while a graph is being traced.
torch.fx.wrap('quadratic_form')


class ChannelQuadratic2d(nn.Module):
    """Weighted sum of all pairwise products of channels at every position, `q_o = sum_ij weight[o, i, j] x_i x_j`.

    Only the symmetric part of `weight[o]` matters. The parameter is the full tensor all the same, as in the authors'
    code: a packed triangle would halve the step of every off-diagonal pair under any optimizer, and neither their
    parameter counts nor their checkpoints would fit. The computation uses the folded half.

    The weight starts at zero, so that a network gains the term without changing its function.

    Args:
        in_chs: Input channels C.
        out_chs: Output channels O; C if None.
        stride: Positions are sampled at this stride, an int or (height, width).
        offset: The first position sampled, an int or (height, width).
        backend: See `dit_timm.ops.quadratic_form`.
        device: Device of the weight.
        dtype: Dtype of the weight.

    Shape:
        Input (N, C, H, W) or (C, H, W); output (N, O, ceil((H - offset) / stride), ceil((W - offset) / stride)) or
        without N. The output has the memory layout of channels_last.
    """

    def __init__(
            self,
            in_chs: int,
            out_chs: Optional[int] = None,
            stride: Union[int, Tuple[int, int]] = 1,
            offset: Union[int, Tuple[int, int]] = 0,
            backend: Optional[str] = None,
            device: Union[torch.device, str, None] = None,
            dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        self.in_chs = in_chs
        self.out_chs = in_chs if out_chs is None else out_chs
        self.stride = cast(Tuple[int, int], to_2tuple(stride))
        self.offset = cast(Tuple[int, int], to_2tuple(offset))
        if min(in_chs, self.out_chs, *self.stride) < 1 or min(self.offset) < 0:
            raise ValueError(
                f'in_chs, out_chs and stride must be positive and offset not negative; got in_chs={in_chs}, '
                f'out_chs={out_chs}, stride={stride}, offset={offset}.'
            )
        check_backend(backend)
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(self.out_chs, in_chs, in_chs, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to zero, as the authors do."""
        nn.init.zeros_(self.weight)

    def subsampled(self, x: torch.Tensor) -> torch.Tensor:
        """The positions of the input that outputs are computed at, a view."""
        if self.stride != (1, 1) or self.offset != (0, 0):
            return x[..., self.offset[0]::self.stride[0], self.offset[1]::self.stride[1]]
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.subsampled(x)
        # Channels last and back. Two transposes each, since the older ONNX exporter gets movedim wrong.
        x = x.transpose(-3, -2).transpose(-2, -1)
        q = quadratic_form(x, self.weight, backend=self.backend)
        return q.transpose(-2, -1).transpose(-3, -2)

    def extra_repr(self) -> str:
        parts = [f'{self.in_chs}, {self.out_chs}']
        if self.stride != (1, 1):
            parts.append(f'stride={self.stride}')
        if self.offset != (0, 0):
            parts.append(f'offset={self.offset}')
        if self.backend is not None:
            parts.append(f'backend={self.backend!r}')
        return ', '.join(parts)
