"""Times of several implementations, taken in turns."""

import gc
import math
import statistics
import time
from contextlib import contextmanager
from typing import Dict, Iterator, List, Mapping, NamedTuple

import torch

from .implementation import Work
from .memory import suppress_out_of_memory

# A short call is repeated until the clock and the synchronisation around it do not matter.
_SHORTEST_SECONDS = 0.02
_MAX_REPEATS = 1000


class Timing(NamedTuple):
    """Seconds of a call.

    Attributes:
        median: The median over the rounds.
        spread: The interquartile range as a share of the median.
        rounds: How many there were.
    """
    median: float
    spread: float
    rounds: int


def alternate(works: Mapping[str, Work], rounds: int, device: str) -> Dict[str, Timing]:
    """Time the implementations A B C A B C ..., so that whatever slows the machine for a while slows them all.

    Args:
        works: The implementations.
        rounds: Times that each has its turn.
        device: Where they run.

    Returns:
        The times by implementation; those that ran out of memory when they warmed up are missing.
    """
    repeats = {}
    with _light_collections():
        for name, work in works.items():
            with suppress_out_of_memory():
                work.function()
                repeats[name] = min(math.ceil(_SHORTEST_SECONDS / seconds_of(work, 1, device)), _MAX_REPEATS)
        seconds: Dict[str, List[float]] = {name: [] for name in repeats}
        for _ in range(rounds):
            for name, count in repeats.items():
                seconds[name].append(seconds_of(works[name], count, device) * works[name].scale)
    return {name: _summary(values) for name, values in seconds.items()}


@contextmanager
def _light_collections() -> Iterator[None]:
    """Let the garbage collector pass over what exists already: all of torch, which takes a while to look through."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def seconds_of(work: Work, repeats: int, device: str) -> float:
    """Time some calls of an implementation, as if `scale` were one; returns the seconds of each."""
    # What the one before left behind must not be cleared away, or waited for, on the clock of this one.
    gc.collect()
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work.function()
    _synchronize(device)
    return (time.perf_counter() - start) / repeats


def _synchronize(device: str) -> None:
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def _summary(seconds: List[float]) -> Timing:
    lower, median, upper = statistics.quantiles(seconds, n=4, method='inclusive')
    return Timing(median, (upper - lower) / median, len(seconds))
