"""Time and memory against size, as a picture."""

from pathlib import Path
from typing import List

from matplotlib.axes import Axes

from ..training.pyplot import plt, save_figure
from .cells import implementation
from .forms import MATERIALISED, OURS
from .results import OUT_OF_MEMORY, Row
from .scaling import SERIES

_SIZES = {'pixels': 'pixels', 'channels': 'in_chs'}
_X_LABELS = {'pixels': 'pixels P', 'channels': 'channels C = O'}
_FIXED = {'pixels': 'C = O = {in_chs:.0f}', 'channels': 'P = {pixels:.0f}'}
_Y_LABELS = {'median_s': 'time, forward and backward (s)', 'peak_mib': 'peak extra memory (MiB)'}


def plot_scaling(rows: List[Row], target: Path) -> None:
    """Draw a column of panels for each series that was measured: time, and memory if it was measured, on log axes.

    Args:
        rows: Rows of the part 'scaling'.
        target: PNG to write.
    """
    series = [name for name in SERIES if any(row['subject'] == name for row in rows)]
    y_labels = {value: label for value, label in _Y_LABELS.items() if any(row[value] for row in rows)}
    figure, axes = plt.subplots(
        len(y_labels), len(series), figsize=(4.8 * len(series), 3.2 * len(y_labels)),
        squeeze=False, sharex='col', layout='constrained',
    )
    for column, name in enumerate(series):
        points = [row for row in rows if row['subject'] == name]
        for line, (value, label) in enumerate(y_labels.items()):
            axis = axes[line][column]
            for form in (OURS, MATERIALISED):
                _draw(axis, [row for row in points if row['implementation'] == form], _SIZES[name], value)
            axis.set_xscale('log')
            axis.set_yscale('log')
            sizes = sorted({row[_SIZES[name]] for row in points})
            axis.set_xticks(sizes, [f'{size:.0f}' for size in sizes])
            axis.set_xticks([], minor=True)
            axis.set_ylabel(label)
            axis.grid(alpha=0.3, which='both')
        axes[0][column].set_title(_FIXED[name].format(**points[0]))
        axes[0][column].legend()
        axes[-1][column].set_xlabel(_X_LABELS[name])
    figure.suptitle(f'{rows[0]["device"]}, threads {rows[0]["threads"]}, {rows[0]["dtype"]}')
    save_figure(figure, target)


def _draw(axis: Axes, rows: List[Row], size: str, value: str) -> None:
    measured = [row for row in rows if row[value]]
    name = implementation(rows[0])
    (line,) = axis.plot([row[size] for row in measured], [row[value] for row in measured], marker='.', label=name)
    failed = [row[size] for row in rows if row['status'] == OUT_OF_MEMORY]
    if failed:
        # On the upper edge, whatever the scale of the panel.
        axis.plot(
            failed, [1] * len(failed), 'x', color=line.get_color(), clip_on=False,
            transform=axis.get_xaxis_transform(), label=f'{name}: {OUT_OF_MEMORY}',
        )
