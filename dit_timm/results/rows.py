"""Results of trained networks: a CSV with a row for each run, and the rows that make a table."""

import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pandas as pd

from ..config.parts import DIT, FROZEN, MLP, PLAIN, TRANSPOSED
from ..errors import InvalidInputError
from ..files import write_file

COLUMNS = (
    'run', 'model', 'variant', 'tag', 'data', 'split', 'images', 'seed', 'epochs', 'epoch', 'chosen', 'recipe',
    'recipe_sha256', 'options', 'images_sha256', 'precision', 'device', 'threads', 'torch', 'timm', 'parameters',
    'top1', 'top5', 'loss', 'log',
)
# All others are text.
_TYPES = {
    **dict.fromkeys(COLUMNS, str), **dict.fromkeys(('images', 'seed', 'epochs', 'parameters'), int),
    **dict.fromkeys(('top1', 'top5', 'loss'), float),
}
# What the rows of one table share, and what no two rows share.
_TABLE = ['data', 'split', 'recipe', 'options']
_IDENTITY = [*_TABLE, 'model', 'variant', 'seed']
# Of a trained Dit network: what is left with A = 0.
REMOVED = 'removed'
# What the variants are called in tables, in their order.
LABELS = {
    PLAIN: 'plain',
    DIT: 'Dit',
    REMOVED: 'Dit, A = 0 after training',
    FROZEN: 'Dit, A fixed at 0',
    TRANSPOSED: 'Dit, map transposed',
    MLP: '1x1 convolutions in place of the term',
}


def read_rows(path: Path) -> pd.DataFrame:
    """Read a CSV that `add_rows` wrote.

    Raises:
        InvalidInputError: It is no such CSV.
        OSError: There is no such file.
    """
    try:
        # Numbers through Python, which keeps every digit.
        rows = pd.read_csv(path, dtype=str, keep_default_na=False).astype(_TYPES)
    except (ValueError, KeyError) as error:
        raise InvalidInputError(f'{path} is no CSV of runs: {error}') from error
    unknown = sorted({*rows['variant']} - {*LABELS})
    if unknown:
        raise InvalidInputError(f'{path} has the variant {", ".join(unknown)}; there are {", ".join(LABELS)}.')
    return rows


def add_rows(rows: List[Dict[str, Any]], path: Path) -> None:
    """Put rows into a CSV, in place of those that say the same of what was trained and evaluated.

    Raises:
        InvalidInputError: Their log has the name of another run's, or the CSV is none of runs.
    """
    new = pd.DataFrame([{name: row[name] for name in COLUMNS} for row in rows]).astype(_TYPES)
    kept = read_rows(path) if path.is_file() else new[:0]
    kept = kept[~_identities(kept).isin(_identities(new))]
    taken = {*kept['log']} & {*new['log']}
    if taken:
        raise InvalidInputError(f'{path} has another run with the log {taken.pop()}: rename the folder of one.')
    every = pd.concat([kept, new]).sort_values(
        ['data', 'recipe', 'parameters', 'variant', 'seed'], kind='stable',
        key=lambda column: column.map(list(LABELS).index) if column.name == 'variant' else column,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, every.to_csv(index=False).encode())


def _identities(rows: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(rows[_IDENTITY])


def tables_of(rows: pd.DataFrame) -> Iterator[Tuple[str, pd.DataFrame]]:
    """The rows of each table, with a name for its pictures.

    Raises:
        InvalidInputError: Runs that should be one table are not comparable.
    """
    for key, members in rows.groupby(_TABLE, sort=False):
        first = members.iloc[0]
        if members['recipe_sha256'].nunique() > 1:
            raise InvalidInputError(
                f'Runs with {first["recipe"]} on {first["data"]} were recorded with different contents of the recipe: '
                f'record all of them again, or name the new recipe otherwise.'
            )
        if members['images_sha256'].nunique() > 1:
            raise InvalidInputError(f'Runs with {first["recipe"]} on {first["data"]} were trained on different images.')
        name = '_'.join(filter(None, (slug(str(part).removesuffix('.yaml')) for part in key)))
        yield name, members


def pictures(name: str, table: pd.DataFrame) -> Dict[str, pd.DataFrame]:
    """The rows in each picture of a table, by the name of the file: one of each network, one of all that there are.

    Args:
        name: The table's.
        table: Its rows.
    """
    trained = table[table['variant'] != REMOVED]
    files = {f'{name}_{model}.png': members for model, members in trained.groupby('model', sort=False)}
    # Of one network there is nothing to see.
    return {**files, f'{name}_parameters.png': trained} if len(files) > 1 else files


def by_seed(rows: pd.DataFrame, column: str = 'top1') -> Dict[int, float]:
    """A number of each row by its seed.

    Raises:
        InvalidInputError: Two rows have the same seed.
    """
    twice = rows[rows['seed'].duplicated()]
    if len(twice):
        row = twice.iloc[0]
        raise InvalidInputError(
            f'Two rows of {row["model"]}, {row["variant"]}, {row["recipe"]} have seed {row["seed"]}.'
        )
    return dict(zip(rows['seed'], rows[column]))


def slug(text: str) -> str:
    """Text as part of the name of a file."""
    return re.sub(r'[^a-z0-9.]+', '_', text.lower()).strip('_')
