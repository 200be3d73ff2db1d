"""What stands in front of every timing: the implementations compute the same."""

from contextlib import contextmanager
from typing import Iterator

import torch

# Largest error as a share of the largest true value. Half precision: the last rounding of an output, and of
# products where a backend forms them in that precision. TF32 keeps 11 bits of each operand.
TOLERANCES = {
    'float64': 1e-12,
    'float32': 2e-5,
    'float32 (tf32)': 2e-3,
    'float16': 2e-3,
    'bfloat16': 1e-2,
}


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of a key of `TOLERANCES`."""
    return getattr(torch, precision.split()[0])


class CheckFailedError(Exception):
    """An implementation does not compute what it should, so that its time would mean nothing."""


def expect_close(what: str, actual: torch.Tensor, truth: torch.Tensor, tolerance: float) -> None:
    """Compare two tensors.

    Args:
        what: What they are, for the message.
        actual: The tensor to check.
        truth: What it should be.
        tolerance: Largest error allowed, as a share of the largest absolute value of `truth`.

    Raises:
        CheckFailedError: The shapes differ, the error is larger, or a value is not finite.
    """
    if actual.shape != truth.shape:
        raise CheckFailedError(f'{what} has shape {tuple(actual.shape)}; expected {tuple(truth.shape)}.')
    scale = truth.abs().max().item()
    error = (actual.to(truth.dtype) - truth).abs().max().item() / scale
    # Not `error > tolerance`: an error that is not a number must fail.
    if not error <= tolerance:
        raise CheckFailedError(f'{what} is off by {error:.1e} of its largest value; tolerance {tolerance:.0e}.')


def set_tf32(enabled: bool) -> None:
    """Let a GPU round the operands of float32 matrix products and convolutions to TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 operands as they are, whatever `set_tf32` has set."""
    # torch's annotation has str too.
    before = bool(torch.backends.cuda.matmul.allow_tf32)
    set_tf32(False)
    try:
        yield
    finally:
        set_tf32(before)
