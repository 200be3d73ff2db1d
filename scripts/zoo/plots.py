"""Pictures of the results: accuracy against epochs and against parameters."""

import math
from pathlib import Path
from typing import List

from matplotlib.ticker import MaxNLocator
from training.logs import read_csv
from training.pyplot import plt

from .rows import DIT, PLAIN, VARIANTS, Row, groups, summary

_COLORS = dict(zip(VARIANTS, ('tab:gray', 'tab:blue', 'tab:cyan', 'tab:orange', 'tab:red')))


def plot_epochs(rows: List[Row], results: Path, target: Path) -> None:
    """Draw the top-1 on held-out images after each epoch: means over the seeds, between the lowest and the highest.

    Args:
        rows: Runs of one network.
        results: The folder that the names of the logs begin in.
        target: PNG to write.
    """
    figure, axis = plt.subplots(figsize=(6, 4), layout='constrained')
    for variant, members in groups(rows, lambda row: row['variant']).items():
        logs = [[float(line['eval_top1']) for line in read_csv(results / row['log'])] for row in members]
        epochs = range(1, len(logs[0]) + 1)
        means = [summary(values).mean for values in zip(*logs)]
        runs = '1 run' if len(logs) == 1 else f'{len(logs)} runs'
        axis.plot(epochs, means, color=_COLORS[variant], label=f'{variant} ({runs})')
        axis.fill_between(
            epochs, [min(values) for values in zip(*logs)], [max(values) for values in zip(*logs)],
            color=_COLORS[variant], alpha=0.2, linewidth=0,
        )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, axis, f'{rows[0]["model"]}, {rows[0]["data"]}', 'epoch', 'top-1 on held-out images (%)', target)


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
            color=_COLORS[variant], marker='o', capsize=3, label=variant,
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
