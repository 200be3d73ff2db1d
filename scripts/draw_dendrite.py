"""Draw the README's picture, a linear neuron beside a quadratic one: `python scripts/draw_dendrite.py FILE.svg`.

It has a background of its own, so that it is legible in light and in dark mode. One release of matplotlib draws the
same bytes each time.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

import matplotlib

from dit_timm.training.pyplot import plt

_BACKGROUND, _INK, _LINEAR, _QUADRATIC = '#f6f8fa', '#1f2328', '#0969da', '#bc4c00'
_INPUTS, _SUM, _OUTPUT = ((0., 1.5), (0., -1.5)), (6., 0.), (8., 0.)
# By the numbers of the inputs that are multiplied.
_PRODUCTS = {(0,): ((2.6, 2.2), '$x_1^2$'), (0, 1): ((2.6, 0.), '$x_1 x_2$'), (1,): ((2.6, -2.2), '$x_2^2$')}


def draw(target: Path) -> None:
    """Draw both neurons.

    Args:
        target: SVG to write.
    """
    with matplotlib.rc_context({'svg.hashsalt': 'dit_timm', 'svg.fonttype': 'path', 'mathtext.fontset': 'dejavusans'}):
        figure, axes = plt.subplots(1, 2, figsize=(8, 3), facecolor=_BACKGROUND, layout='constrained')
        _neuron(axes[0], 'linear neuron', r'$y = \sum_i w_i\, x_i$', quadratic=False)
        formula = r'$y = \sum_i w_i\, x_i + \sum_{i,j} A_{ij}\, x_i\, x_j$'
        _neuron(axes[1], "dendrite's quadratic neuron", formula, quadratic=True)
        # Without the date and the version of matplotlib.
        figure.savefig(target, metadata={'Date': None, 'Creator': None})
        plt.close(figure)


def _neuron(axis: plt.Axes, title: str, formula: str, quadratic: bool) -> None:
    for place in _INPUTS:
        _line(axis, place, _SUM, _LINEAR)
    if quadratic:
        for factors, (place, label) in _PRODUCTS.items():
            for number in factors:
                _line(axis, _INPUTS[number], place, _QUADRATIC)
            _line(axis, place, _SUM, _QUADRATIC)
            _node(axis, place, label, _QUADRATIC, 950)
    for number, place in enumerate(_INPUTS, 1):
        _node(axis, place, f'$x_{number}$', _INK, 700)
    _line(axis, _SUM, _OUTPUT, _INK)
    _node(axis, _SUM, r'$\Sigma$', _INK, 950)
    axis.text(_OUTPUT[0] + 0.2, _OUTPUT[1], '$y$', color=_INK, fontsize=15, va='center')
    axis.set_title(title, color=_INK, fontsize=13)
    axis.text(4., -3.9, formula, color=_INK, fontsize=14, ha='center', va='center')
    axis.set(xlim=(-0.8, 8.8), ylim=(-4.6, 3.))
    axis.axis('off')


def _line(axis: plt.Axes, start: tuple, end: tuple, color: str) -> None:
    axis.plot(*zip(start, end), color=color, linewidth=1.8, zorder=1, solid_capstyle='round')


def _node(axis: plt.Axes, place: tuple, label: str, color: str, size: float) -> None:
    axis.scatter(*place, s=size, facecolor=_BACKGROUND, edgecolor=color, linewidth=1.8, zorder=2)
    axis.text(*place, label, color=color, fontsize=12, ha='center', va='center_baseline', zorder=3)


def main(argv: Optional[List[str]] = None) -> int:
    """Draw; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('target', type=Path, metavar='FILE.svg')
    draw(parser.parse_args(argv).target)
    return 0


if __name__ == '__main__':
    sys.exit(main())
