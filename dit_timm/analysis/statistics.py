"""Statistics of repeated runs: means, deviations, Student's t intervals, differences of runs with the same seed."""

import math
import statistics
from typing import Hashable, Iterable, Mapping, NamedTuple, Optional

from scipy.stats import t as students_t


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


def paired(ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float]) -> Optional[Summary]:
    """The differences, ours less theirs, of runs with the same seed; None if there are none.

    Args:
        ours: Numbers by seed.
        theirs: Numbers by seed.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    return summary(ours[seed] - theirs[seed] for seed in seeds) if seeds else None
