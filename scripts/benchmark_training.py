"""Measure what scripts/train.py adds to a bare training loop, and timm's train.py beside it.

Each implementation is a command of its own that trains the same model on the same images (scikit-learn's digits, or
--data-dir) in batches of the same size, with the same augmentation, and evaluates after each epoch. They run in turns
of one epoch, the others standing still meanwhile, so that they see the same machine; starting is not counted, saving
and logging are. A ratio is the median of the ratios within each round.

timm's script comes with its repository, not with its package: `--timm-train FILE` says where it is.
"""

import argparse
import shlex
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch
from tqdm import tqdm

from dit_timm.benchmark.results import Row, write_rows
from dit_timm.benchmark.turns import CommandFailedError, InTurns
from dit_timm.config.choices import positive_int
from dit_timm.data.digits import digits_folder
from dit_timm.training.environment import environment

BARE, OURS, TIMM = 'bare loop', 'scripts/train.py', 'train.py of timm'
_SCRIPTS = Path(__file__).parent
_BARE_LOOP = _SCRIPTS.parent / 'dit_timm' / 'benchmark' / 'bare_loop.py'
# Starting, and an epoch in which caches and workers come to what they will be.
_UNCOUNTED = 2
_RUN = 'run'


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='dit_resnet20', metavar='NAME')
    parser.add_argument('--data-dir', type=Path, metavar='DIR', help='folder with train and validation')
    parser.add_argument('--timm-train', type=Path, metavar='FILE', help='train.py of a checkout of timm')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu or cuda (default: cuda where there is a GPU for it)',
    )
    parser.add_argument('-b', '--batch-size', type=positive_int, default=128, metavar='N')
    parser.add_argument('-j', '--workers', type=positive_int, default=2, metavar='N')
    parser.add_argument('--rounds', type=positive_int, default=30, metavar='N', help='epochs that are timed')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write a row for each implementation')
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error('--rounds must be at least 2, or there is no spread.')
    args.data_dir = args.data_dir or digits_folder()
    for path in (args.data_dir / 'train', args.data_dir / 'validation', args.timm_train):
        if path is not None and not path.exists():
            parser.error(f'{path} does not exist.')
    return args


def implementation(name: str, args: argparse.Namespace, output: Path) -> InTurns:
    """The command of a implementation, not yet started.

    Args:
        name: BARE, OURS or TIMM.
        args: Of the command line.
        output: An empty folder.
    """
    # One more than it is given time for: none ends, or is at its last epoch, within a turn that counts.
    epochs = _UNCOUNTED + args.rounds + 1
    if name == BARE:
        words = [_BARE_LOOP, args.data_dir, args.model, epochs, args.batch_size, args.workers, args.device]
    else:
        classes = sum(path.is_dir() for path in (args.data_dir / 'train').iterdir())
        words = [_SCRIPTS / 'train.py' if name == OURS else args.timm_train]
        options = {
            'data-dir': args.data_dir, 'model': args.model, 'num-classes': classes, 'epochs': epochs,
            'batch-size': args.batch_size, 'workers': args.workers, 'opt': 'sgd', 'lr': 0.1, 'weight-decay': 2e-5,
            'warmup-epochs': 0, 'device': args.device, 'output': output, 'experiment': _RUN,
        }
        words += [word for key, value in options.items() for word in (f'--{key}', value)]
    summary = None if name == BARE else output / _RUN / 'summary.csv'
    return InTurns([sys.executable, *map(str, words)], output, lambda stdout: summary or stdout)


def measure(args: argparse.Namespace) -> List[Row]:
    """Time the implementations in turns; returns a row for each.

    Raises:
        CommandFailedError: A implementation ended with an error.
    """
    names = [BARE, OURS, *([TIMM] if args.timm_train else [])]
    seconds: Dict[str, List[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        commands = {}
        for name in names:
            output = Path(scratch, str(len(commands)))
            output.mkdir()
            commands[name] = running.enter_context(implementation(name, args, output))
        for _ in tqdm(range(_UNCOUNTED + args.rounds), desc='rounds', leave=False, disable=None):
            for name, command in commands.items():
                seconds[name].append(command.turn())
    return [_row(name, values[_UNCOUNTED:], seconds[BARE][_UNCOUNTED:], args) for name, values in seconds.items()]


def _row(name: str, seconds: List[float], bare: List[float], args: argparse.Namespace) -> Row:
    median, spread = _median_and_spread(seconds)
    ratio, ratio_spread = _median_and_spread([ours / other for ours, other in zip(seconds, bare)])
    return {
        'part': 'training', 'subject': args.model, 'dtype': 'float32', 'phase': 'epoch', 'implementation': name,
        'status': 'ok', 'batch_size': args.batch_size, 'rounds': len(seconds), 'median_s': median, 'spread': spread,
        'base_ratio': ratio, 'base_ratio_spread': ratio_spread,
    }


def _median_and_spread(values: List[float]) -> Tuple[float, float]:
    """The median, and the interquartile range as a share of it."""
    lower, median, upper = statistics.quantiles(values, n=4, method='inclusive')
    return median, (upper - lower) / median


def main(argv: Optional[List[str]] = None) -> int:
    """Measure, print and write; returns the exit code."""
    args = parse_args(argv)
    # So that nothing that stands still outlives this process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        rows = measure(args)
    except CommandFailedError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    # Without the folders of this machine.
    words = sys.argv[1:] if argv is None else argv
    for path in filter(None, (args.timm_train, args.data_dir)):
        words = [word.replace(str(path), path.name) for word in words]
    facts = {**environment(args.device), 'command': shlex.join(['python', 'scripts/benchmark_training.py', *words])}
    rows = [{**facts, **row} for row in rows]
    for row in rows:
        print(f'{row["implementation"]}: {row["median_s"]:.3f} s an epoch, spread {100 * row["spread"]:.1f} %, '
              f'{row["base_ratio"]:.3f} of the bare loop, spread {100 * row["base_ratio_spread"]:.1f} %')
    if args.csv is not None:
        write_rows(rows, args.csv)
    return 0


if __name__ == '__main__':
    sys.exit(main())
