"""hub/results/README.md and the README's block: what training with and without the term has given."""

from pathlib import Path
from typing import Any, Dict, Hashable

import pandas as pd

from ..analysis.statistics import Summary, paired, summary
from ..config.parts import DIT, PLAIN
from .markdown import markdown_table, page
from .rows import LABELS, by_seed, pictures, tables_of

_HEADINGS = ('network', 'variant', 'parameters (M)', 'runs', 'top-1 (%)', 'against plain (points)', 'top-5 (%)', 'loss')
_BLOCK_HEADINGS = ('data', 'network', 'epochs', 'pairs of runs', 'plain (%)', 'Dit (%)', 'difference (points)')
# With the two of its head, six lines.
_BLOCK_ROWS = 4
_NOTES = (
    'A = 0 after training is the trained network with its term taken away, without more training: it says how much the '
    'network relies on the term, not what the term is worth. Columns with a link are what others report for the plain '
    'network, after 164 epochs or more.'
)


def runs_page(rows: pd.DataFrame, published: pd.DataFrame) -> str:
    """The page: the answer, and for each data set and recipe a table and pictures.

    Args:
        rows: See `read_rows`.
        published: Top-1 of the plain networks that others report: data, model, source, top1, url.
    """
    parts = ['## Does the term help?', answer(rows)]
    for name, members in tables_of(rows):
        parts.append(_table(members, published))
        parts += [
            f'![{", ".join(of["model"].unique())} on {of["data"].iloc[0]}]({file})'
            for file, of in pictures(name, members).items()
        ]
    says = 'what training with and without the quadratic term gives, from the rows of `runs.csv`'
    return page('Trained networks', says, *parts, _NOTES)


def runs_block(rows: pd.DataFrame) -> str:
    """The README's block: the answer, and its comparisons as a table."""
    lines = [
        (
            pair['data'], pair['model'], str(pair['epochs']), str(pair['difference'].count), str(pair['without']),
            str(pair['with']), pair['difference'].interval(),
        )
        for pair in _pairs(rows).head(_BLOCK_ROWS).to_dict('records')
    ]
    return '\n\n'.join((answer(rows), *([markdown_table(_BLOCK_HEADINGS, lines)] if lines else [])))


def answer(rows: pd.DataFrame) -> str:
    """A sentence for each data set: what the term is worth in the network and recipe with the most pairs of runs."""
    best = _pairs(rows).drop_duplicates('data').to_dict('records')
    return '\n\n'.join(map(_sentence, best)) or 'Not measured.'


def _pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Dit networks and their plain twins, many epochs before many seeds; at least two pairs of runs in each."""
    found = []
    for _, members in tables_of(rows):
        for model, of_model in members.groupby('model', sort=False):
            ours, theirs = (by_seed(of_model[of_model['variant'] == variant]) for variant in (DIT, PLAIN))
            difference = paired(ours, theirs)
            if difference is not None and difference.margin is not None:
                found.append({
                    'data': of_model['data'].iloc[0], 'model': model, 'epochs': of_model['epochs'].iloc[0],
                    'pairs': difference.count, 'difference': difference,
                    'with': summary(ours[seed] for seed in ours if seed in theirs),
                    'without': summary(theirs[seed] for seed in ours if seed in theirs),
                })
    pairs = pd.DataFrame(found, columns=['data', 'model', 'epochs', 'pairs', 'difference', 'with', 'without'])
    return pairs.sort_values(['epochs', 'pairs'], ascending=False, kind='stable')


def _sentence(pair: Dict[Hashable, Any]) -> str:
    difference: Summary = pair['difference']
    assert difference.margin is not None, 'of one pair'
    epochs = '1 epoch' if pair['epochs'] == 1 else f'{pair["epochs"]} epochs'
    low, high = difference.mean - difference.margin, difference.mean + difference.margin
    verdict = 'It helps.' if low > 0 else 'It hurts.' if high < 0 else 'The interval includes zero: no effect is shown.'
    return (
        f'{pair["data"]}, {pair["model"]} after {epochs}: {pair["with"].mean:.2f} % top-1 with the term, '
        f'{pair["without"].mean:.2f} % for the same network without it, in {difference.count} pairs of runs: '
        f'{difference.interval()} points (95 % interval). {verdict}'
    )


def runs_tables(rows: pd.DataFrame) -> str:
    """The answer and the tables alone, as Markdown."""
    nothing = pd.DataFrame(columns=['data', 'model', 'source', 'top1', 'url'])
    return '\n\n'.join((answer(rows), *(_table(members, nothing) for _, members in tables_of(rows))))


def _table(rows: pd.DataFrame, published: pd.DataFrame) -> str:
    others = published[(published['data'] == rows['data'].iloc[0]) & published['model'].isin(rows['model'])]
    sources = dict(zip(others['source'], others['url']))
    top1 = others.set_index(['model', 'source'])['top1'].to_dict()
    lines = []
    for model, of_model in rows.groupby('model', sort=False):
        plain = by_seed(of_model[of_model['variant'] == PLAIN])
        for variant, members in of_model.groupby('variant', sort=False):
            ours = by_seed(members)
            difference = paired(ours, plain) if variant != PLAIN else None
            lines.append([
                model, LABELS[str(variant)], f'{members["parameters"].iloc[0] / 1e6:.3f}', str(len(members)),
                str(summary(ours.values())), difference.interval() if difference else '',
                str(summary(members['top5'])), f'{members["loss"].mean():.4f}',
                *(top1.get((model, source), '') if variant == PLAIN else '' for source in sources),
            ])
    headings = [*_HEADINGS, *(f'[{source}]({url}): top-1 (%)' for source, url in sources.items())]
    return f'{_caption(rows)}\n\n{markdown_table(headings, lines)}'


def _caption(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    options = f' with {first["options"]}' if first['options'] else ''
    seeds = sorted(rows['seed'].unique())
    spread = (
        f'Seeds {", ".join(map(str, seeds))}: mean ± standard deviation; differences are between runs with the same '
        'seed, with the 95 % interval of their mean.'
        if len(seeds) > 1 else f'One seed, {seeds[0]}: nothing is said of the spread.'
    )
    chosen = (
        'the best epoch on images held out of the training data' if first['chosen'] == 'best'
        else 'the last epoch, trained on all images'
    )
    return (
        f'**{first["data"]}.** Recipe `{first["recipe"]}`{options}: {first["epochs"]} epochs, {first["precision"]}, '
        f'{_each(rows["device"])}, torch {_each(rows["torch"])}, timm {_each(rows["timm"])}. Weights of {chosen}; the '
        f'{first["split"]} split ({first["images"]:,} images) is read once for a trained network and once more for it '
        f'with A = 0, and chose nothing. {spread}'
    )


def _each(column: pd.Series) -> str:
    """Each value once; a run that was resumed elsewhere has several."""
    values = list(column.str.split('; ').explode().unique())
    return ' and '.join(filter(None, (', '.join(values[:-1]), values[-1])))


def read_published(path: Path) -> pd.DataFrame:
    """Read what others report; top-1 as it is written there."""
    return pd.read_csv(path, dtype=str)
