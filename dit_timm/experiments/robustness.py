"""Does the quadratic term help or hurt where images are worse than those trained on?

Trained networks are evaluated on the test split of their run, corrupted by noise, blur, brightness and JPEG in five
strengths (`dit_timm.analysis.corruptions`), with and without the quadratic term; Dit networks are compared with the
plain networks of the same seed. `robustness.py RUN ... [--data-dir DIR]`, where the runs are folders that
scripts/train.py or scripts/sweep.py wrote; without runs, the network in the package is compared with itself without the
term.
"""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import pandas as pd
from PIL import Image
from torchvision.transforms import Compose

from ..analysis.ablation import quadratic_terms, remove_quadratic
from ..analysis.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from ..analysis.statistics import paired, summary
from ..errors import InvalidInputError
from ..results.markdown import markdown_frame
from ..training.engine import evaluate
from ..training.pyplot import plt, save_figure
from .networks import add_options as add_options, commands, image_limit, open_network

CLEAN, ALL = 'clean', 'all corruptions'
PLAIN, DIT, REMOVED = 'plain', 'Dit', 'Dit, A = 0'


def tasks(args: Namespace) -> List[Tuple]:
    """Arguments of `run`."""
    strengths = (1, 5) if args.quick else STRENGTHS
    cases = [(CLEAN, 0), *((kind, strength) for kind in CORRUPTIONS for strength in strengths)]
    return [(words, kind, strength, image_limit(args)) for words in commands(args) for kind, strength in cases]


def run(words: List[str], kind: str, strength: int, limit: Optional[int]) -> Iterator[Dict[str, object]]:
    """Evaluate a network on images that are corrupted in one way; of a Dit network, also with A = 0.

    Args:
        words: See `commands`.
        kind: Of the corruption, or 'clean'.
        strength: Of it.
        limit: How many images; None for all.
    """
    network = open_network(words, limit)
    if kind != CLEAN:
        network.dataset.transform = Compose([_corruption(kind, strength), network.dataset.transform])
    facts = {
        'run': network.name, 'seed': network.seed, 'corruption': kind, 'strength': strength, 'images': network.images,
    }
    for state in (DIT, REMOVED) if quadratic_terms(network.model) else (PLAIN,):
        if state == REMOVED:
            remove_quadratic(network.model)
        metrics = evaluate(network.model, network.loader, network.args, kind, show=False)
        yield {**facts, 'network': state, 'top1': metrics['top1'], 'loss': metrics['loss']}


def _corruption(kind: str, strength: int) -> Callable[[Image.Image], Image.Image]:
    return partial(corrupt, kind=kind, strength=strength)


def report(rows: pd.DataFrame) -> str:
    """Top-1 by corruption and strength, and what the term changes against the plain networks of the same seeds."""
    keys = ['corruption', 'strength']
    if rows.duplicated([*keys, 'network', 'seed']).any():
        runs = ', '.join(sorted(rows['run'].unique()))
        raise InvalidInputError(f'There may be one Dit network and one plain network of each seed; got {runs}.')
    corrupted = rows[rows['corruption'] != CLEAN]
    mean = corrupted.groupby(['run', 'seed', 'network'], as_index=False)['top1'].mean()
    rows = pd.concat([rows, mean.assign(corruption=ALL, strength='mean')])
    table = rows.groupby([*keys, 'network'])['top1'].agg(lambda values: str(summary(values))).unstack()
    if PLAIN in table and DIT in table:
        for key, group in rows.groupby(keys):
            by_seed = {name: part.set_index('seed')['top1'].to_dict() for name, part in group.groupby('network')}
            difference = paired(by_seed[DIT], by_seed[PLAIN])
            table.loc[key, 'Dit less plain, 95 % interval'] = difference.interval() if difference else ''
    return f'Top-1 (%), mean ± deviation over the runs:\n\n{markdown_frame(table)}'


def plot(rows: pd.DataFrame, folder: Path) -> None:
    """Draw top-1 against strength, for each corruption; strength 0 are the clean images."""
    figure, axes = plt.subplots(1, len(CORRUPTIONS), figsize=(3.5 * len(CORRUPTIONS), 3.5), layout='constrained')
    for axis, kind in zip(axes, CORRUPTIONS):
        of_kind = rows[rows['corruption'].isin([CLEAN, kind])]
        for network, group in of_kind.groupby('network'):
            points = group.groupby('strength')['top1'].agg(['mean', 'std']).fillna(0)
            axis.errorbar(points.index, points['mean'], points['std'], label=network, capsize=2)
        axis.set(title=kind, xlabel='strength', ylabel='top-1 (%)')
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize='small')
    save_figure(figure, folder / 'robustness.png')
