"""matplotlib's pyplot, drawing to files: no screen is needed."""

from pathlib import Path

from matplotlib import pyplot as plt

__all__ = ['plt', 'save_figure']

plt.switch_backend('Agg')


def save_figure(figure: plt.Figure, target: Path) -> None:
    """Write a figure as a PNG and close it. The version of matplotlib is left out: equal numbers are equal files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120, metadata={'Software': None})
    plt.close(figure)
