"""The time that the arithmetic alone takes: the same FLOPs as plain matrix products."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Tuple

import torch

from ..ops.precision import accumulation_dtype
from .implementation import Work
from .shape import FORWARD, FORWARD_BACKWARD, Shape
from .timing import seconds_of

# A tile of operands and its result stay in the cache of one core ...
_CPU_INNER, _CPU_COLUMNS = 384, 256
# ... and these are large enough for the full matrix rate of a GPU.
_DEVICE_SIZE = 4096


@dataclass(frozen=True)
class Roofline:
    """Matrix products on operands that are used again and again.

    On a CPU each thread has a tile of O rows of its own; on a GPU the products are large. The products are repeated
    until they have the FLOPs of the shape, and the time counts by the exact ratio of the FLOPs.

    The operands have the dtype of the inputs, or that of the sums if this device is faster with it: some CPUs have no
    units for half precision.
    """
    shape: Shape
    device: str
    dtype: torch.dtype
    phases: ClassVar[Tuple[str, ...]] = (FORWARD, FORWARD_BACKWARD)

    def build(self, phase: str) -> Work:
        """See `Implementation`."""
        works = [self._build(phase, dtype) for dtype in {self.dtype, accumulation_dtype(self.dtype)}]
        for work in works:
            work.warm_up()
        return min(works, key=lambda work: seconds_of(work, 1, self.device))

    def _build(self, phase: str, dtype: torch.dtype) -> Work:
        if torch.device(self.device).type == 'cpu':
            batch, rows, inner, columns = torch.get_num_threads(), self.shape.out_chs, _CPU_INNER, _CPU_COLUMNS
        else:
            batch, rows, inner, columns = 1, _DEVICE_SIZE, _DEVICE_SIZE, _DEVICE_SIZE
        randn = partial(torch.randn, device=self.device, dtype=dtype)
        left, right = randn(batch, rows, inner), randn(batch, inner, columns)
        product = torch.empty(batch, rows, columns, device=self.device, dtype=dtype)
        flops = self.shape.flops(phase)
        product_flops = 2 * product.numel() * inner
        count = -(-flops // product_flops)

        def multiply() -> None:
            torch.bmm(left, right, out=product)

        def function() -> None:
            for _ in range(count):
                multiply()

        return Work(function, warm_up=multiply, scale=flops / (count * product_flops))
