"""Pictures of the results: accuracy against epochs and against parameters."""

from pathlib import Path

import pandas as pd
from matplotlib.ticker import MaxNLocator

from ..training.pyplot import plt, save_figure
from .rows import DIT, LABELS, PLAIN, pictures, tables_of

_COLORS = dict(zip(LABELS, ('tab:gray', 'tab:blue', 'tab:cyan', 'tab:orange', 'tab:red', 'tab:green')))


def draw(rows: pd.DataFrame, results: Path) -> None:
    """Draw the pictures of every table.

    Args:
        rows: See `read_rows`.
        results: The folder for the pictures, in which the names of the logs begin.
    """
    for name, table in tables_of(rows):
        for file, members in pictures(name, table).items():
            if members['model'].nunique() > 1:
                plot_parameters(members, results / file)
            else:
                plot_epochs(members, results, results / file)


def plot_epochs(rows: pd.DataFrame, results: Path, target: Path) -> None:
    """Draw what was measured after each epoch: means over the seeds, between the lowest and the highest.

    That is the top-1 on held-out images, or the training loss of runs that held out none.

    Args:
        rows: Runs of one network.
        results: The folder that the names of the logs begin in.
        target: PNG to write.
    """
    figure, axis = plt.subplots(figsize=(6, 4), layout='constrained')
    logs = {name: pd.read_csv(results / name) for name in rows['log']}
    holds_out = all('eval_top1' in log for log in logs.values())
    column, label = ('eval_top1', 'top-1 on held-out images (%)') if holds_out else ('train_loss', 'training loss')
    for variant, members in rows.groupby('variant', sort=False):
        curves = pd.DataFrame({name: logs[name][column] for name in members['log']})
        color, name = _COLORS[str(variant)], LABELS[str(variant)]
        epochs = curves.index + 1
        runs = '1 run' if len(members) == 1 else f'{len(members)} runs'
        axis.plot(epochs, curves.mean(axis=1), color=color, label=f'{name} ({runs})')
        axis.fill_between(epochs, curves.min(axis=1), curves.max(axis=1), color=color, alpha=0.2, linewidth=0)
    if not holds_out:
        axis.set_yscale('log')
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    first = rows.iloc[0]
    _finish(figure, axis, f'{first["model"]}, {first["data"]}', 'epoch', label, target)


def plot_parameters(rows: pd.DataFrame, target: Path) -> None:
    """Draw the top-1 on test images of Dit networks and their plain twins: means and standard deviations."""
    figure, axis = plt.subplots(figsize=(6, 4), layout='constrained')
    for variant in (PLAIN, DIT):
        # Of a single run there is no deviation, and no bar is drawn.
        top1 = rows[rows['variant'] == variant].groupby('parameters')['top1'].agg(['mean', 'std'])
        axis.errorbar(
            top1.index / 1e6, top1['mean'], yerr=top1['std'], color=_COLORS[variant], marker='o', capsize=3,
            label=LABELS[variant],
        )
    _finish(figure, axis, rows['data'].iloc[0], 'parameters (millions)', 'top-1 on test images (%)', target)


def _finish(figure: plt.Figure, axis: plt.Axes, title: str, x: str, y: str, target: Path) -> None:
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, target)
