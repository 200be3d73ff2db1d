"""What the dendrites of trained networks have learned: do they capture which channels go together in the data?

For each output of each quadratic term: how many eigenvalues its form has in effect, and the correlation of |A[o, i,
j]| with the absolute correlation of the channels i and j over all pairs, with the share of random orders of the
channels in which it is as large; as the network has A, and for channels in units of their deviation in the data. For
each class: what is lost without the term. `dendrites.py RUN ... [--data-dir DIR]`; without runs, the network in the
package. The page of a single network, with pictures, is scripts/explain.py's.
"""

from argparse import Namespace
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import pandas as pd

from ..analysis.interactions import class_losses, interactions
from ..analysis.statistics import summary
from ..results.markdown import markdown_frame
from ..training.engine import classified
from ..training.pyplot import plt, save_figure
from ..training.trained import read_classes
from .networks import add_options as add_options, commands, image_limit, open_network

OUTPUT, CLASS = 'output', 'class'
_LOSSES = 'top1', 'without', 'lost'
RAW, STANDARDISED = 'of the network', 'deviations'


def tasks(args: Namespace) -> List[Tuple]:
    """Arguments of `run`."""
    return [(words, image_limit(args)) for words in commands(args)]


def run(words: List[str], limit: Optional[int]) -> Iterator[Dict[str, object]]:
    """Look at a network; yields a row for each output of each term, and for each class.

    Args:
        words: See `commands`.
        limit: How many images; None for all.
    """
    network = open_network(words, limit)
    facts = {'run': network.name, 'seed': network.seed, 'images': network.images}
    for term in interactions(network.model, (images for images, _ in network.loader)):
        for units, seen in ((RAW, term), (STANDARDISED, term.standardised())):
            agreement, rank, chance = seen.agreement(), seen.effective_rank, seen.chance()
            for output, (agrees, effective) in enumerate(zip(agreement.tolist(), rank.tolist())):
                yield {
                    **facts, 'of': OUTPUT, 'units': units, 'term': term.name, 'name': output,
                    'channels': term.form.shape[1], 'effective_rank': effective, 'agreement': agrees, 'chance': chance,
                }
    targets, full, left = classified(network.model, network.loader, network.args)
    names = list(read_classes(network.args, network.model))
    for label, row in enumerate(class_losses(full == targets, left == targets, targets, names)):
        # How often images of any class are taken for it: a class loses nothing to a network that sees it everywhere.
        shares = {
            'predicted': 100 * (full == label).double().mean().item(),
            'predicted_without': 100 * (left == label).double().mean().item(),
        }
        yield {**facts, 'of': CLASS, 'name': row['class'], **shares, **{key: row[key] for key in _LOSSES}}


def report(rows: pd.DataFrame) -> str:
    """Agreement, chance and rank of each run, and over the runs; and what the classes lose."""
    outputs, classes = (rows[rows['of'] == kind] for kind in (OUTPUT, CLASS))
    outputs = outputs.assign(explained=100 * outputs['agreement'] ** 2)
    by_run = outputs.groupby(['units', 'run'])[['agreement', 'explained', 'chance', 'effective_rank']].mean()
    columns = ['lost', 'predicted', 'predicted_without']
    lost = classes.groupby('name')[columns].agg(lambda values: summary(values).interval())
    over_runs = by_run.groupby('units')['agreement'].agg(lambda values: summary(values).interval())
    over_outputs = outputs.groupby('units')['agreement'].agg(lambda values: summary(values).interval())
    return '\n\n'.join((
        'Correlation of |A| with the absolute correlation of the channels (agreement), the share of the variance of '
        '|A| that it explains (%), the share of random orders of the channels in which it is as large (chance, the '
        'p-value of a permutation test), and how many eigenvalues a form has in effect, (sum |e|)^2 / sum e^2; means '
        'over the outputs:',
        markdown_frame(by_run.round(3)),
        'Correlation of |A| with the absolute correlation of the channels, 95 % intervals (the outputs of a network '
        'are not independent of one another):',
        markdown_frame(pd.DataFrame({'over the runs': over_runs, 'over all outputs': over_outputs})),
        'Points of top-1 that a class loses without the term, and the share of all images (%) that are taken for it '
        'with and without the term; 95 % intervals over the runs:',
        markdown_frame(lost),
        'Points of top-1 lost by each network: '
        + ', '.join(f'{run} {mean:.1f}' for run, mean in classes.groupby('run')['lost'].mean().items()) + '.',
    ))


def plot(rows: pd.DataFrame, folder: Path) -> None:
    """Draw the agreement of all outputs by run, and what each class loses."""
    outputs, classes = (rows[rows['of'] == kind] for kind in (OUTPUT, CLASS))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for shift, colour, units in ((-0.1, 'tab:blue', RAW), (0.1, 'tab:orange', STANDARDISED)):
        for number, (_, group) in enumerate(outputs[outputs['units'] == units].groupby('run')):
            axes[0].plot([number + shift] * len(group), group['agreement'], 'o', color=colour, alpha=0.4,
                         label=f'units: {units}' if number == 0 else None)
    axes[0].legend(fontsize='small')
    axes[0].axhline(0, color='black', linewidth=1)
    axes[0].set(
        xlabel='network', ylabel='correlation', title='|A| against |correlation of the channels|, each output',
        xticks=range(outputs['run'].nunique()),
    )
    by_class = classes.groupby('name')['lost'].agg(['mean', 'std']).fillna(0).sort_values('mean')
    axes[1].barh(by_class.index, by_class['mean'], xerr=by_class['std'], color='tab:blue')
    axes[1].set(xlabel='points', title='Top-1 lost without the term')
    for axis in axes:
        axis.grid(alpha=0.3)
    save_figure(figure, folder / 'dendrites.png')
