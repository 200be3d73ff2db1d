"""Results of trained networks: a row of a CSV for each run, and evaluation of it."""

import math
import statistics
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

from scipy.stats import t as students_t

from ..config.parts import DIT, FROZEN, MLP, PLAIN, TRANSPOSED
from ..errors import InvalidInputError
from ..training.logs import read_csv, write_csv

Row = Dict[str, str]

COLUMNS = (
    'run', 'model', 'variant', 'tag', 'data', 'split', 'images', 'seed', 'epochs', 'epoch', 'chosen', 'recipe',
    'recipe_sha256', 'options', 'images_sha256', 'precision', 'device', 'threads', 'torch', 'timm', 'parameters',
    'top1', 'top5', 'loss', 'log',
)
# Of a trained Dit network: what is left of it with A = 0.
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
_ORDER = tuple(LABELS)


class Summary(NamedTuple):
    """Some numbers.

    Attributes:
        mean: Their mean.
        deviation: Their standard deviation (n - 1); None of a single one.
        count: How many there are.
    """
    mean: float
    deviation: Optional[float]
    count: int

    @property
    def margin(self) -> Optional[float]:
        """Half the 95 % interval of the mean, by Student's t; None of a single number."""
        if self.deviation is None:
            return None
        return float(students_t.ppf(0.975, self.count - 1)) * self.deviation / math.sqrt(self.count)

    def interval(self) -> str:
        """The mean with its sign, and the 95 % interval around it."""
        if self.margin is None:
            return f'{self.mean:+.2f}'
        return f'{self.mean:+.2f} [{self.mean - self.margin:+.2f}, {self.mean + self.margin:+.2f}]'

    def __str__(self) -> str:
        return f'{self.mean:.2f}' if self.deviation is None else f'{self.mean:.2f} ± {self.deviation:.2f}'


def summary(values: Iterable[float]) -> Summary:
    """Summarise at least one number."""
    values = list(values)
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def add_rows(rows: List[Dict[str, Any]], path: Path) -> None:
    """Put rows into a CSV, in place of those that say the same of what was trained and evaluated.

    Raises:
        InvalidInputError: Their log has the name of another run's.
    """
    def identity(row: Dict[str, Any]) -> Tuple[str, ...]:
        return tuple(str(row[name]) for name in ('data', 'model', 'variant', 'recipe', 'options', 'seed', 'split'))

    new = {identity(row) for row in rows}
    kept = [row for row in read_csv(path) if identity(row) not in new]
    taken = {row['log'] for row in kept} & {row['log'] for row in rows}
    if taken:
        raise InvalidInputError(f'{path} has another run with the log {taken.pop()}: rename the folder of one.')
    every = [*kept, *({name: str(row[name]) for name in COLUMNS} for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(sorted(every, key=_order), path)


def _order(row: Row) -> Tuple:
    return row['data'], row['recipe'], int(row['parameters']), _ORDER.index(row['variant']), int(row['seed'])


def by_seed(rows: Iterable[Row], value: str = 'top1') -> Dict[str, float]:
    """A number of each row by its seed.

    Raises:
        InvalidInputError: Two rows have the same seed.
    """
    numbers: Dict[str, float] = {}
    for row in rows:
        if row['seed'] in numbers:
            raise InvalidInputError(
                f'Two rows of {row["model"]}, {row["variant"]}, {row["recipe"]} have seed {row["seed"]}.'
            )
        numbers[row['seed']] = float(row[value])
    return numbers


def paired(ours: Dict[str, float], theirs: Dict[str, float]) -> Optional[Summary]:
    """The differences of runs with the same seed; None if there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    return summary(ours[seed] - theirs[seed] for seed in seeds) if seeds else None


def groups(rows: Iterable[Row], key: Callable[[Row], Any]) -> Dict[Any, List[Row]]:
    """Rows by a key, in the order in which the keys come."""
    found: Dict[Any, List[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found
