"""Quadratic neurons: a linear layer whose outputs also receive a quadratic form of the inputs.

Papers: "Dendritic Integration Inspired Artificial Neural Networks Capture Data Correlation", Liu, Ma, Li, Zhou, NeurIPS
2024; the low-rank form is of the same group's https://arxiv.org/abs/2307.13609.
"""

from typing import Optional, Union

import torch
import torch.nn.functional as F
from torch import nn

from ..ops import check_backend, quadratic_form


class QuadraticLinear(nn.Module):
    """Quadratic neurons, `y_o = (linear(x))_o + sum_ij A[o, i, j] x_i x_j`.

    Without a rank, A is the parameter `quadratic` of shape (O, C, C), of which only the symmetric part matters; it
    starts at zero. With one, `A[o] = sum_r coefficients[o, r] v v^T` where `v = factors[o, r]`: the coefficients start
    at zero and the factors as the weight of a linear layer does, since where both are zero both gradients are. Either
    way the layer is its linear part at first.

    Args:
        in_features: Inputs C.
        out_features: Outputs O.
        bias: Whether the linear part has a bias.
        rank: Largest rank of each A[o]; None for the full A.
        backend: See `dit_timm.ops.quadratic_form`; the low-rank form is plain torch and takes none.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        Input (..., C); output (..., O).

    Raises:
        ValueError: A size is not positive, there is no such backend, or a rank comes with a backend.
    """

    def __init__(
            self,
            in_features: int,
            out_features: int,
            bias: bool = True,
            rank: Optional[int] = None,
            backend: Optional[str] = None,
            device: Union[torch.device, str, None] = None,
            dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        if min(in_features, out_features) < 1 or rank is not None and rank < 1:
            raise ValueError(
                f'in_features, out_features and rank must be positive; got in_features={in_features}, '
                f'out_features={out_features}, rank={rank}.'
            )
        if rank is not None and backend is not None:
            raise ValueError(f'The low-rank form is plain torch: leave out rank={rank} or backend={backend!r}.')
        check_backend(backend)
        self.rank, self.backend = rank, backend
        self.linear = nn.Linear(in_features, out_features, bias, device, dtype)
        if rank is None:
            self.quadratic = nn.Parameter(
                torch.empty(out_features, in_features, in_features, device=device, dtype=dtype),
            )
        else:
            self.factors = nn.Parameter(torch.empty(out_features, rank, in_features, device=device, dtype=dtype))
            self.coefficients = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self._reset_quadratic()

    def reset_parameters(self) -> None:
        """Draw the linear part as `nn.Linear` does, and set the quadratic one to zero."""
        self.linear.reset_parameters()
        self._reset_quadratic()

    def _reset_quadratic(self) -> None:
        if self.rank is None:
            nn.init.zeros_(self.quadratic)
        else:
            bound = self.linear.in_features ** -0.5
            nn.init.uniform_(self.factors, -bound, bound)
            nn.init.zeros_(self.coefficients)

    def form(self) -> torch.Tensor:
        """The symmetric A, shape (O, C, C)."""
        if self.rank is None:
            return (self.quadratic + self.quadratic.mT) / 2
        return torch.einsum('or,ori,orj->oij', self.coefficients, self.factors, self.factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if self.rank is None:
            return self.linear(x) + quadratic_form(x, self.quadratic, backend=self.backend)
        # (..., O, R): what each factor sees.
        projected = F.linear(x, self.factors.flatten(0, 1)).unflatten(-1, self.coefficients.shape)
        return self.linear(x) + (projected.square() * self.coefficients).sum(-1)

    def extra_repr(self) -> str:
        return ', '.join(
            f'{name}={value!r}' for name, value in (('rank', self.rank), ('backend', self.backend)) if value is not None
        )
