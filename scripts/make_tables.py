"""The README's tables of trained networks, from hub/results/runs.csv, which scripts/record_run.py writes.

`python scripts/make_tables.py` rewrites the block between the markers; `--check` fails if that would change it.
`python scripts/make_tables.py --plots` draws the pictures beside the CSV.
"""

import re
import sys
from pathlib import Path
from typing import List, Optional, Tuple

import readme_block
from training.logs import read_csv
from zoo.rows import PLAIN, REMOVED, Row, by_seed, groups, paired, summary

RESULTS = Path(__file__).parent.parent / 'hub' / 'results'
_NOTES = {
    'CIFAR-10 (JPEG q75 copy)':
        'Every image of this copy of CIFAR-10 was re-encoded as JPEG, quality 75: accuracies are **not** comparable '
        'with published CIFAR-10 numbers, only with each other.',
}


def tables() -> str:
    """Markdown: a table for each data set and recipe, a line for each variant of a network."""
    rows = read_csv(RESULTS / 'runs.csv')
    return '\n\n'.join(_table(members) for members in groups(rows, _comparable).values()) or 'None yet.'


def _comparable(row: Row) -> Tuple[str, ...]:
    """What runs of one table share."""
    return row['data'], row['split'], row['recipe'], row['options']


def _table(rows: List[Row]) -> str:
    if len({row['recipe_sha256'] for row in rows}) > 1:
        raise ValueError(
            f'Runs with {rows[0]["recipe"]} on {rows[0]["data"]} were recorded with different contents of it: record '
            f'all of them again, or name the new recipe otherwise.'
        )
    lines = [
        _caption(rows),
        '',
        '| network | variant | parameters (M) | runs | top-1 (%) | against plain (points) | top-5 (%) | loss |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for model, of_model in groups(rows, lambda row: row['model']).items():
        variants = groups(of_model, lambda row: row['variant'])
        for variant, members in variants.items():
            lines.append(_line(model, variant, members, variants.get(PLAIN, [])))
    return '\n'.join(lines)


def _caption(rows: List[Row]) -> str:
    first = rows[0]
    options = f' with {first["options"]}' if first['options'] else ''
    seeds = sorted({int(row['seed']) for row in rows})
    spread = (
        f'Seeds {", ".join(map(str, seeds))}: mean ± standard deviation; differences are between runs with the same '
        'seed.'
        if len(seeds) > 1 else f'One seed, {seeds[0]}: nothing is said of the spread.'
    )
    chosen = 'the best epoch on images held out of the training data' if first['chosen'] == 'best' else 'the last epoch'
    sentences = (
        f'**{first["data"]}.** Recipe `{first["recipe"]}`{options}: {first["epochs"]} epochs, {first["precision"]}, '
        f'{_all(rows, "device")}, torch {_all(rows, "torch")}, timm {_all(rows, "timm")}.',
        f'Weights of {chosen}; the {first["split"]} split ({int(first["images"]):,} images) is read once for a trained '
        f'network and once more for it with A = 0, and chose nothing.',
        spread,
        _NOTES.get(first['data'], ''),
    )
    return ' '.join(filter(None, sentences))


def _line(model: str, variant: str, rows: List[Row], plain: List[Row]) -> str:
    difference = paired(by_seed(rows), by_seed(plain)) if variant != PLAIN else None
    sign = '+' if difference is not None and difference.mean >= 0 else ''
    cells = (
        model, variant, f'{int(rows[0]["parameters"]) / 1e6:.3f}', str(len(rows)), str(summary(by_seed(rows).values())),
        f'{sign}{difference}' if difference else '', str(summary(by_seed(rows, 'top5').values())),
        f'{summary(by_seed(rows, "loss").values()).mean:.4f}',
    )
    return f'| {" | ".join(cells)} |'


def _all(rows: List[Row], name: str) -> str:
    """Each value once; a run that went on elsewhere has several."""
    values = list(dict.fromkeys(value for row in rows for value in row[name].split('; ')))
    return ' and '.join(filter(None, (', '.join(values[:-1]), values[-1])))


def draw() -> None:
    """Draw the pictures of every table."""
    from zoo.plots import plot_epochs, plot_parameters
    rows = [row for row in read_csv(RESULTS / 'runs.csv') if row['variant'] != REMOVED]
    for key, of_table in groups(rows, _comparable).items():
        name = '_'.join(filter(None, (re.sub(r'[^a-z0-9.]+', '_', part.lower()).strip('_') for part in key)))
        name = name.replace('.yaml', '')
        of_models = groups(of_table, lambda row: row['model'])
        for model, members in of_models.items():
            plot_epochs(members, RESULTS, RESULTS / f'{name}_{model}.png')
        # Of one network there is nothing to see.
        if len(of_models) > 1:
            plot_parameters(of_table, RESULTS / f'{name}_parameters.png')


def main(argv: Optional[List[str]] = None) -> int:
    """Write or check the tables, or draw; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv == ['--plots']:
        draw()
        return 0
    try:
        return readme_block.main('results', 'scripts/make_tables.py', tables, __doc__, argv)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
