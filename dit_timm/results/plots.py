"""Pictures of the results: accuracy against epochs and against parameters."""

import math
from pathlib import Path
from typing import List

from matplotlib.ticker import MaxNLocator

from ..training.logs import read_csv
from ..training.pyplot import plt
from .rows import DIT, LABELS, PLAIN, Row, groups, summary

_COLORS = dict(zip(LABELS, ('tab:gray', 'tab:blue', 'tab:cyan', 'tab:orange', 'tab:red', 'tab:green')))


def plot_epochs(rows: List[Row], results: Path, target: Path) -> None:
    """Draw what was measured after each epoch: means over the seeds, between the lowest and the highest.

    That is the top-1 on held-out images, or the training loss of runs that held out none.

    Args:
        rows: Runs of one network.
        results: The folder that the names of the logs begin in.
        target: PNG to write.
    """
    figure, axis = plt.subplots(figsize=(6, 4), layout='constrained')
    logs = {row['log']: read_csv(results / row['log']) for row in rows}
    holds_out = all('eval_top1' in log[0] for log in logs.values())
    column, label = ('eval_top1', 'top-1 on held-out images (%)') if holds_out else ('train_loss', 'training loss')
    for variant, members in groups(rows, lambda row: row['variant']).items():
        curves = [[float(line[column]) for line in logs[row['log']]] for row in members]
        epochs = range(1, len(curves[0]) + 1)
        means = [summary(values).mean for values in zip(*curves)]
        runs = '1 run' if len(curves) == 1 else f'{len(curves)} runs'
        axis.plot(epochs, means, color=_COLORS[variant], label=f'{LABELS[variant]} ({runs})')
        axis.fill_between(
            epochs, [min(values) for values in zip(*curves)], [max(values) for values in zip(*curves)],
            color=_COLORS[variant], alpha=0.2, linewidth=0,
        )
    if not holds_out:
        axis.set_yscale('log')
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, axis, f'{rows[0]["model"]}, {rows[0]["data"]}', 'epoch', label, target)


def plot_parameters(rows: List[Row], target: Path) -> None:
    """Draw the top-1 on test images of Dit networks and their plain twins: means and standard deviations."""
    figure, axis = plt.subplots(figsize=(6, 4), layout='constrained')
    for variant in (PLAIN, DIT):
        points = groups((row for row in rows if row['variant'] == variant), lambda row: int(row['parameters']))
        sizes = sorted(points)
        summaries = [summary(float(row['top1']) for row in points[size]) for size in sizes]
        axis.errorbar(
            [size / 1e6 for size in sizes], [value.mean for value in summaries],
            # Of a single run there is no deviation, and no bar is drawn.
            yerr=[math.nan if value.deviation is None else value.deviation for value in summaries],
            color=_COLORS[variant], marker='o', capsize=3, label=LABELS[variant],
        )
    _finish(figure, axis, rows[0]['data'], 'parameters (millions)', 'top-1 on test images (%)', target)


def _finish(figure: plt.Figure, axis: plt.Axes, title: str, x: str, y: str, target: Path) -> None:
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Without a date in it: the same numbers are the same file.
    figure.savefig(target, dpi=120, metadata={'Software': None})
    plt.close(figure)
