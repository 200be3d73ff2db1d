"""Implementations side by side: their peak memory, then their times in turns."""

from typing import Dict, Mapping, NamedTuple, Optional, Sequence

from .busy import busy_processes
from .implementation import Implementation
from .memory import peaks
from .timing import Timing, alternate


class Result(NamedTuple):
    """One implementation in one phase.

    Attributes:
        timing: Its times; None if it ran out of memory.
        peak_bytes: Its peak extra memory; None if that was not measured.
    """
    timing: Optional[Timing]
    peak_bytes: Optional[int]


def compare(
        runs: Mapping[str, Implementation],
        phases: Sequence[str],
        rounds: int,
        with_memory: Sequence[str] = (),
        busy: int = 0,
) -> Dict[str, Dict[str, Result]]:
    """Measure the implementations.

    Memory comes first: an implementation that runs out of it does so where it takes nobody along, and is not timed.

    Args:
        runs: The implementations, all on one device.
        phases: The phases to time.
        rounds: Rounds of the timing.
        with_memory: The implementations whose memory is measured.
        busy: Processes that keep the CPU busy beside the timing.

    Returns:
        Results by phase and implementation.
    """
    memory = {name: peaks(runs[name]) for name in with_memory}
    results = {}
    for phase in phases:
        works = {
            name: run.build(phase) for name, run in runs.items() if name not in memory or phase in memory[name]
        }
        with busy_processes(busy):
            timings = alternate(works, rounds, device=next(iter(runs.values())).device)
        results[phase] = {
            name: Result(timings.get(name), memory.get(name, {}).get(phase)) for name in runs
        }
    return results
