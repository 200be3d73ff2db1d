"""Part 'op': the quadratic form alone."""

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, ClassVar, Dict, List, Sequence, Tuple

import torch

from .checks import TOLERANCES, dtype_of, expect_close
from .compare import compare
from .forms import MATERIALISED, OURS, ROOFLINE, form, materialised
from .implementation import Implementation, Work
from .results import Row, to_rows
from .roofline import Roofline
from .shape import FORWARD, FORWARD_BACKWARD, Shape

TITLE = 'the quadratic form'

_SHAPES = (
    Shape(8 * 56 * 56, 96, 96),
    Shape(8 * 56 * 56, 128, 128),
    Shape(8 * 28 * 28, 128, 128),
    Shape(64 * 16 * 16, 32, 32),
    Shape(56 * 56, 96, 96),
    Shape(1, 96, 96),
)
_GPU_SHAPES = (Shape(64 * 56 * 56, 96, 96),)

_CHECKED_PIXELS = 2000
_TRUTH_PRODUCTS = 1 << 24


@dataclass(frozen=True)
class OpImplementation:
    """One way to compute the quadratic form, at one shape; see `Implementation`."""
    implementation: str
    shape: Shape
    device: str
    dtype: torch.dtype
    phases: ClassVar[Tuple[str, ...]] = (FORWARD, FORWARD_BACKWARD)

    def build(self, phase: str) -> Work:
        """See `Implementation`."""
        compute = form(self.implementation)
        x, weight, grad = inputs(self.shape, self.device, self.dtype)
        first = x[:1].detach().requires_grad_()
        if phase == FORWARD:
            return Work(lambda: _forward(compute, x, weight), lambda: _forward(compute, first, weight))
        return Work(
            lambda: _forward_backward(compute, x, weight, grad),
            lambda: _forward_backward(compute, first, weight, grad[:1]),
        )


def inputs(shape: Shape, device: str, dtype: torch.dtype) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The x, weight and output gradient of every implementation at a shape; outputs are of order one."""
    generator = torch.Generator(device).manual_seed(0)
    randn = partial(torch.randn, generator=generator, device=device, dtype=dtype)
    x = randn(shape.pixels, shape.in_chs).requires_grad_()
    weight = randn(shape.out_chs, shape.in_chs, shape.in_chs).div_(shape.in_chs).requires_grad_()
    return x, weight, randn(shape.pixels, shape.out_chs)


@torch.no_grad()
def _forward(compute: Callable, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return compute(x, weight)


def _forward_backward(
        compute: Callable, x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor,
) -> Tuple[torch.Tensor, ...]:
    output = compute(x, weight)
    return output, *torch.autograd.grad(output, (x, weight), grad)


def subjects(args: argparse.Namespace) -> Sequence[Shape]:
    """The shapes to measure."""
    if args.only is not None:
        return args.only_shapes
    return _SHAPES if torch.device(args.device).type == 'cpu' else _SHAPES + _GPU_SHAPES


def check(shape: Shape, args: argparse.Namespace) -> None:
    """Hold every backend that will be timed to the materialised form in float64; see `check_backends`."""
    check_backends(shape, (OURS, *args.backends), args.device, args.precision)


def check_backends(shape: Shape, implementations: Sequence[str], device: str, precision: str) -> None:
    """Hold backends to the materialised form in float64: outputs, gradient of x, gradient of the weights.

    A backend computes the whole shape, as it will when it is timed. Its output gradient is zero but at a sample of
    the pixels, so that their truth is the truth of all gradients.

    Args:
        shape: The shape.
        implementations: The backends.
        device: Where they run.
        precision: A key of `TOLERANCES`.

    Raises:
        CheckFailedError: A result is off by more than the tolerance.
    """
    x, weight, grad = inputs(shape, device, dtype_of(precision))
    rows = _sample(shape.pixels).to(device)
    grad = torch.zeros_like(grad).index_copy_(0, rows, grad[rows])
    output, grad_x, grad_weight = _truth(x[rows], weight, grad[rows])
    grad_x = torch.zeros_like(x, dtype=torch.float64).index_copy_(0, rows, grad_x)
    for implementation in implementations:
        actual = _forward_backward(form(implementation), x, weight, grad)
        expected = {
            'the output': (actual[0][rows], output),
            'the gradient of x': (actual[1], grad_x),
            'the gradient of the weights': (actual[2], grad_weight),
        }
        for name, (found, truth) in expected.items():
            name = f'{implementation} at {shape}, {precision}: {name}'
            expect_close(name, found.detach(), truth, TOLERANCES[precision])


def _sample(pixels: int) -> torch.Tensor:
    """At most `_CHECKED_PIXELS` pixels, the first and the last among them."""
    if pixels <= _CHECKED_PIXELS:
        return torch.arange(pixels)
    between = torch.randperm(pixels - 2, generator=torch.Generator().manual_seed(0))[:_CHECKED_PIXELS - 2] + 1
    return torch.cat([torch.tensor([0, pixels - 1]), between])


def _truth(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    """Output and gradients of the materialised form in float64, a bounded number of products at a time."""
    x = x.detach().double().requires_grad_()
    weight = weight.detach().double().requires_grad_()
    size = max(1, _TRUTH_PRODUCTS // x.shape[1] ** 2)
    outputs = []
    for x_part, grad_part in zip(x.split(size), grad.double().split(size)):
        output = materialised(x_part, weight)
        output.backward(grad_part)
        outputs.append(output.detach())
    assert x.grad is not None and weight.grad is not None
    return torch.cat(outputs), x.grad, weight.grad


def measure(shape: Shape, args: argparse.Namespace) -> List[Row]:
    """Time the implementations at a shape; returns a row for each implementation, phase and number of `--busy`."""
    facts = {'part': 'op', 'subject': str(shape)}
    implementations = (OURS, *args.backends, MATERIALISED)
    return [
        row for busy in args.busy
        for row in measure_shape(shape, implementations, OpImplementation.phases, args, facts, roofline=True, busy=busy)
    ]


def measure_shape(
        shape: Shape,
        implementations: Sequence[str],
        phases: Sequence[str],
        args: argparse.Namespace,
        facts: Dict[str, Any],
        roofline: bool = False,
        busy: int = 0,
) -> List[Row]:
    """Time implementations at a shape.

    Args:
        shape: The shape.
        implementations: Names that `form` knows.
        phases: Phases to time.
        args: Options.
        facts: Columns of every row.
        roofline: Whether the roofline takes part.
        busy: Processes that keep the CPU busy beside the timing.

    Returns:
        A row for each implementation and phase.
    """
    dtype = dtype_of(args.precision)
    runs: Dict[str, Implementation] = {
        name: OpImplementation(name, shape, args.device, dtype) for name in implementations
    }
    with_memory = tuple(runs) if args.memory else ()
    if roofline:
        runs[ROOFLINE] = Roofline(shape, args.device, dtype)
    facts = {**facts, **shape._asdict(), 'dtype': args.precision, 'busy': busy}
    results = compare(runs, phases, args.rounds, with_memory, busy)
    return [
        row for phase in phases for row in to_rows(results[phase], args.device, dtype, {**facts, 'phase': phase})
    ]
