"""Part 'scaling': time and memory of the quadratic form against the number of pixels and of channels."""

import argparse
from typing import List, NamedTuple, Sequence

import torch

from .forms import MATERIALISED, OURS
from .op import check_backends, measure_shape
from .results import Row
from .shape import FORWARD_BACKWARD, Shape

TITLE = 'the quadratic form as it grows'

SERIES = ('pixels', 'channels')
_IMAGES = (1, 2, 4, 8, 16, 32)
_CHANNELS = (16, 32, 64, 96, 128, 192, 256)
# Pixels of a map of ConvNeXt's first stage at 224 px, and its channels in the tiny and small networks.
_MAP, _MAP_CHANNELS = 56 * 56, 96
_CHANNELS_IMAGES = 2
_GPU_FACTOR = 8


class Point(NamedTuple):
    """A shape as part of a series."""
    series: str
    shape: Shape

    def __str__(self) -> str:
        return f'{self.series} {self.shape}'


def subjects(args: argparse.Namespace) -> Sequence[Point]:
    """The points of the series to measure."""
    factor = 1 if torch.device(args.device).type == 'cpu' else _GPU_FACTOR
    pixels = _CHANNELS_IMAGES * factor * _MAP
    points = [
        *(Point('pixels', Shape(images * factor * _MAP, _MAP_CHANNELS, _MAP_CHANNELS)) for images in _IMAGES),
        *(Point('channels', Shape(pixels, channels, channels)) for channels in _CHANNELS),
    ]
    return [point for point in points if args.only is None or point.series in args.only_series]


def check(point: Point, args: argparse.Namespace) -> None:
    """Hold the automatic backend to the materialised form."""
    check_backends(point.shape, (OURS,), args.device, args.precision)


def measure(point: Point, args: argparse.Namespace) -> List[Row]:
    """Time ours and the materialised form at a point, forward and backward."""
    facts = {'part': 'scaling', 'subject': point.series}
    return measure_shape(point.shape, (OURS, MATERIALISED), (FORWARD_BACKWARD,), args, facts)
