"""What the experiments share: a command that runs tasks on all cores, and writes a CSV and figures."""

import argparse
import importlib
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import List, Optional

import pandas as pd
import torch
from tqdm import tqdm

from ..errors import UserError, message_of
from ..printing import set_up_printing
from ..training.environment import environment


def main(experiment: ModuleType, argv: Optional[List[str]] = None) -> int:
    """Run an experiment; returns the exit code.

    Args:
        experiment: A module with `tasks(args)`, tuples of arguments; `run(*task)`, which yields rows; `report(rows)`,
            what the rows say, as text; `plot(rows, folder)`, which draws them; and `add_options(parser)`, if it has
            options of its own.
        argv: The command line; that of the process if None.
    """
    set_up_printing()
    name = experiment.__name__.rpartition('.')[2]
    parser = argparse.ArgumentParser(
        prog=f'{name}.py', description=experiment.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--quick', action='store_true', help='a small part of it, in less than a minute')
    parser.add_argument(
        '--out', type=Path, default=Path('output', 'experiments'), metavar='DIR',
        help=f'where {name}.csv and the figures go (default: %(default)s)',
    )
    parser.add_argument(
        '--processes', type=int, default=torch.get_num_threads(), metavar='N', help='default: one for each core',
    )
    if hasattr(experiment, 'add_options'):
        experiment.add_options(parser)
    args = parser.parse_args(argv)
    try:
        tasks = experiment.tasks(args)
        rows = pd.DataFrame(_run(experiment, tasks, args.processes))
    except (UserError, OSError) as error:
        print(f'error: {message_of(error)}', file=sys.stderr)
        return 1
    words = sys.argv[1:] if argv is None else argv
    facts = environment('cpu')
    rows = rows.assign(
        command=shlex.join(['python', f'scripts/experiments/{name}.py', *words]),
        **{key: facts[key] for key in ('date', 'device', 'torch')},
    )
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f'{name}.csv'
    rows.to_csv(path, index=False, float_format='%.6g')
    # What the file says, to all its digits.
    rows = pd.read_csv(path)
    try:
        print(experiment.report(rows))
        experiment.plot(rows, args.out)
    except (UserError, OSError) as error:
        print(f'error: {message_of(error)} The numbers are in {path}.', file=sys.stderr)
        return 1
    return 0


def _run(experiment: ModuleType, tasks: List[tuple], processes: int) -> List[dict]:
    if processes == 1:
        return [row for task in tqdm(tasks, disable=None) for row in experiment.run(*task)]
    with ProcessPoolExecutor(processes, mp_context=get_context('spawn'), initializer=torch.set_num_threads,
                             initargs=(1,)) as pool:
        futures = [pool.submit(_rows, experiment.__name__, task) for task in tasks]
        return [row for future in tqdm(futures, disable=None) for row in future.result()]


def _rows(module: str, task: tuple) -> List[dict]:
    return list(importlib.import_module(module).run(*task))
