"""Sizes of the quadratic form, and the arithmetic that they cost."""

from typing import NamedTuple

FORWARD, FORWARD_BACKWARD = 'forward', 'forward+backward'

# Backward is one product of the size of forward's for each of the two gradients.
_MATRIX_PRODUCTS = {FORWARD: 1, FORWARD_BACKWARD: 3}


class Shape(NamedTuple):
    """Inputs (pixels, in_chs), weights (out_chs, in_chs, in_chs); written `PxCxO`."""
    pixels: int
    in_chs: int
    out_chs: int

    @classmethod
    def parse(cls, text: str) -> 'Shape':
        """Read `PxCxO`.

        Raises:
            ValueError: `text` is not three positive integers joined by 'x'.
        """
        sizes = [int(size) for size in text.split('x')]
        if len(sizes) != 3 or min(sizes) < 1:
            raise ValueError(f'a shape is three positive integers, PxCxO; got {text!r}.')
        return cls(*sizes)

    def __str__(self) -> str:
        return 'x'.join(map(str, self))

    def flops(self, phase: str) -> int:
        """Floating point operations of the matrix products over the K = C * (C + 1) / 2 distinct products."""
        pairs = self.in_chs * (self.in_chs + 1) // 2
        return 2 * self.pixels * pairs * self.out_chs * _MATRIX_PRODUCTS[phase]
