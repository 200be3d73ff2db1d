"""The README's blocks about trained networks, from hub/results/runs.csv, which scripts/record_run.py writes.

`python scripts/make_tables.py` rewrites what stands between the markers; `--check` fails if that would change it.
`python scripts/make_tables.py --plots` draws the pictures beside the CSV.

hub/results/published.csv has what others report for the plain networks.
"""

import re
import statistics
import sys
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import readme_block

from dit_timm.config.parts import DIT, PLAIN
from dit_timm.errors import InvalidInputError, UserError
from dit_timm.results.rows import LABELS, REMOVED, Row, Summary, by_seed, groups, paired, summary
from dit_timm.training.logs import read_csv

RESULTS = Path(__file__).parent.parent / 'hub' / 'results'
_HEADINGS = ('network', 'variant', 'parameters (M)', 'runs', 'top-1 (%)', 'against plain (points)', 'top-5 (%)', 'loss')


def tables() -> str:
    """Markdown: a table for each data set and recipe, a line for each variant of a network."""
    return '\n\n'.join(_table(members) for members in _comparable().values()) or 'None yet.'


def answer() -> str:
    """A sentence for each data set: what the term is worth in the network and recipe with the most pairs of runs."""
    best: Dict[str, Tuple] = {}
    for members in _comparable().values():
        for model, of_model in groups(members, lambda row: row['model']).items():
            variants = groups(of_model, lambda row: row['variant'])
            with_term, without = (by_seed(variants.get(name, [])) for name in (DIT, PLAIN))
            difference = paired(with_term, without)
            if difference is None or difference.margin is None:
                continue
            row = of_model[0]
            # Many epochs before many seeds.
            rank = int(row['epochs']), difference.count
            if row['data'] not in best or rank > best[row['data']][0]:
                means = [statistics.mean(top1[seed] for seed in with_term if seed in without)
                         for top1 in (with_term, without)]
                best[row['data']] = rank, model, row, means, difference
    return '\n\n'.join(_sentence(*found) for _, *found in best.values()) or 'Not measured.'


def _sentence(model: str, row: Row, means: List[float], difference: Summary) -> str:
    epochs = '1 epoch' if row['epochs'] == '1' else f'{row["epochs"]} epochs'
    low, high = difference.mean - difference.margin, difference.mean + difference.margin
    verdict = 'It helps.' if low > 0 else 'It hurts.' if high < 0 else 'The interval includes zero: no effect is shown.'
    return (
        f'**Does the term help?** {row["data"]}, {model} after {epochs}: {means[0]:.2f} % top-1 with the term, '
        f'{means[1]:.2f} % for the same network without it, in {difference.count} pairs of runs: '
        f'{difference.interval()} points (95 % interval). {verdict}'
    )


def _comparable() -> Dict[Tuple[str, ...], List[Row]]:
    """Rows by what runs of one table share."""
    rows = read_csv(RESULTS / 'runs.csv')
    return groups(rows, lambda row: (row['data'], row['split'], row['recipe'], row['options']))


def _table(rows: List[Row]) -> str:
    if len({row['recipe_sha256'] for row in rows}) > 1:
        raise InvalidInputError(
            f'Runs with {rows[0]["recipe"]} on {rows[0]["data"]} were recorded with different contents of it: record '
            f'all of them again, or name the new recipe otherwise.'
        )
    if len({row['images_sha256'] for row in rows}) > 1:
        raise InvalidInputError(f'Runs with {rows[0]["recipe"]} on {rows[0]["data"]} were trained on different images.')
    published = _published(rows[0]['data'], {row['model'] for row in rows})
    headings = [*_HEADINGS, *(f'{source}: top-1 (%)' for source in published)]
    lines = [_caption(rows), '', _markdown(headings), '|' + '---|' * len(headings)]
    for model, of_model in groups(rows, lambda row: row['model']).items():
        variants = groups(of_model, lambda row: row['variant'])
        for variant, members in variants.items():
            others = [values.get(model, '') if variant == PLAIN else '' for values in published.values()]
            lines.append(_markdown([*_cells(model, variant, members, variants.get(PLAIN, [])), *others]))
    return '\n'.join(lines)


def _published(data: str, models: set) -> Dict[str, Dict[str, str]]:
    """Top-1 of the plain networks by source and network."""
    rows = [row for row in read_csv(RESULTS / 'published.csv') if row['data'] == data and row['model'] in models]
    return {
        source: {row['model']: row['top1'] for row in members}
        for source, members in groups(rows, lambda row: row['source']).items()
    }


def _caption(rows: List[Row]) -> str:
    first = rows[0]
    options = f' with {first["options"]}' if first['options'] else ''
    seeds = sorted({int(row['seed']) for row in rows})
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
        f'{_all(rows, "device")}, torch {_all(rows, "torch")}, timm {_all(rows, "timm")}. Weights of {chosen}; the '
        f'{first["split"]} split ({int(first["images"]):,} images) is read once for a trained network and once more '
        f'for it with A = 0, and chose nothing. {spread}'
    )


def _cells(model: str, variant: str, rows: List[Row], plain: List[Row]) -> List[str]:
    difference = paired(by_seed(rows), by_seed(plain)) if variant != PLAIN else None
    return [
        model, LABELS[variant], f'{int(rows[0]["parameters"]) / 1e6:.3f}', str(len(rows)),
        str(summary(by_seed(rows).values())), difference.interval() if difference else '',
        str(summary(by_seed(rows, 'top5').values())), f'{summary(by_seed(rows, "loss").values()).mean:.4f}',
    ]


def _markdown(cells: List[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _all(rows: List[Row], name: str) -> str:
    """Each value once; a run that went on elsewhere has several."""
    values = list(dict.fromkeys(value for row in rows for value in row[name].split('; ')))
    return ' and '.join(filter(None, (', '.join(values[:-1]), values[-1])))


def draw() -> None:
    """Draw the pictures of every table."""
    from dit_timm.results.plots import plot_epochs, plot_parameters
    for key, of_table in _comparable().items():
        name = '_'.join(filter(None, (re.sub(r'[^a-z0-9.]+', '_', part.lower()).strip('_') for part in key)))
        name = name.replace('.yaml', '')
        of_models = groups((row for row in of_table if row['variant'] != REMOVED), lambda row: row['model'])
        for model, members in of_models.items():
            plot_epochs(members, RESULTS, RESULTS / f'{name}_{model}.png')
        # Of one network there is nothing to see.
        if len(of_models) > 1:
            plot_parameters(of_table, RESULTS / f'{name}_parameters.png')


def main(argv: Optional[List[str]] = None) -> int:
    """Write or check the blocks, or draw; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv == ['--plots']:
        draw()
        return 0
    try:
        codes = [
            readme_block.main(name, 'scripts/make_tables.py', content, __doc__, argv)
            for name, content in (('answer', answer), ('results', tables))
        ]
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return max(codes)


if __name__ == '__main__':
    sys.exit(main())
