"""Measure the speed and the memory of the quadratic term.

Three parts, each of which times its implementations in turns:

op       the quadratic form alone, against the materialised form (the authors' formula in plain torch) and against the
         roofline (the same FLOPs as plain matrix products on operands in the cache, or large ones on a GPU)
model    training steps and inference of Dit networks, against their base networks and against the same networks with
         the materialised form
scaling  the quadratic form against the materialised form, as pixels and channels grow

Before anything is timed, everything that will be is held to the materialised form: outputs and gradients. If one is
off, the exit code is 1 and there are no numbers.

Memory is what a call takes beyond its inputs: growth of the resident memory of a process of its own on a CPU, bytes
handed out by torch's allocator on a GPU. Speed is the median over the rounds; its spread is the interquartile range
as a share of the median.
"""

import argparse
import shlex
import sys
from typing import List, Optional

import torch
from rich.console import Console

from dit_timm.benchmark import model, op, scaling
from dit_timm.benchmark.checks import CheckFailedError, set_tf32
from dit_timm.benchmark.options import parse_args
from dit_timm.benchmark.results import Row, write_rows
from dit_timm.benchmark.tables import table
from dit_timm.printing import set_up_printing
from dit_timm.training.environment import environment

_TABLE_WIDTH = 120
_PARTS = {'op': op, 'model': model, 'scaling': scaling}


def _configure(args: argparse.Namespace) -> None:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    set_tf32(args.tf32)


def main(argv: Optional[List[str]] = None) -> int:
    """Check, measure, print and write; returns the exit code."""
    set_up_printing()
    args = parse_args(__doc__, argv)
    _configure(args)
    # Tables keep their columns where the width is unknown, as in a pipe, or small.
    console = Console(width=max(_TABLE_WIDTH, Console().width))
    plan = [(part, subject) for part in args.part for subject in _PARTS[part].subjects(args)]
    try:
        for part, subject in plan:
            with console.status(f'checking {subject}'):
                _PARTS[part].check(subject, args)
    except CheckFailedError as error:
        print(f'error: {error} Nothing was timed.', file=sys.stderr)
        return 1
    console.print(f'checks passed: {len(plan)}')

    words = sys.argv[1:] if argv is None else argv
    facts = {**environment(args.device), 'command': shlex.join(['python', 'scripts/benchmark.py', *words])}
    rows: List[Row] = []
    for part, subject in plan:
        with console.status(f'measuring {subject}'):
            rows += [{**facts, **row} for row in _PARTS[part].measure(subject, args)]
        if args.csv is not None:
            # After each, so that a run that is cut short leaves what it has.
            write_rows(rows, args.csv)
    for part in args.part:
        measured = [row for row in rows if row['part'] == part]
        title = f'{_PARTS[part].TITLE}; {measured[0]["dtype"]}, {facts["device"]}, threads {facts["threads"]}'
        console.print(table(part, title, measured))
    if args.plot is not None:
        # Only now: the other parts do without matplotlib.
        from dit_timm.benchmark.plot import plot_scaling
        plot_scaling([row for row in rows if row['part'] == 'scaling'], args.plot)
    return 0


if __name__ == '__main__':
    sys.exit(main())
