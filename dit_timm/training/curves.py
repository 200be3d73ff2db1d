"""The curves of a run."""

import csv
from pathlib import Path

from .pyplot import plt, save_figure


def plot_curves(summary: Path, target: Path) -> None:
    """Draw loss and accuracy against epochs.

    Args:
        summary: CSV with a row for each epoch.
        target: PNG to write.
    """
    with summary.open() as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row['epoch']) + 1 for row in rows]
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(9, 3.5), layout='constrained')
    for axis, names in ((losses, ('train_loss', 'eval_loss')), (accuracies, ('eval_top1', 'eval_top5'))):
        # A run may be evaluated on nothing before its end.
        drawn = [name for name in names if name in rows[0]]
        for name in drawn:
            axis.plot(epochs, [float(row[name]) for row in rows], marker='.', label=name.replace('_', ' '))
        axis.set_xlabel('epoch')
        axis.grid(alpha=0.3)
        if drawn:
            axis.legend()
        else:
            axis.set_visible(False)
    losses.set_ylabel('cross entropy')
    accuracies.set_ylabel('% of images')
    save_figure(figure, target)
