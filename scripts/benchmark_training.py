"""Measure what scripts/train.py adds to a bare training loop, and timm's train.py beside it.

Each contestant is a command of its own that trains the same model on the same images (scikit-learn's digits, or
--data-dir) in batches of the same size, with the same augmentation, and evaluates after each epoch. What an epoch costs
is the difference between a run of 1 + N epochs and a run of 1, divided by N: starting is not counted, saving and
logging are. Contestants take turns; a ratio is the median of the ratios within each round.

timm's script comes with its repository, not with its package: `--timm-train FILE` says where it is.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Optional

import torch
from benchmarking.results import Row, write_rows
from tqdm import tqdm
from training.config import positive_int
from training.digits import digits_folder
from training.environment import environment

BARE, OURS, TIMM = 'bare loop', 'scripts/train.py', 'train.py of timm'
_SCRIPTS = Path(__file__).parent


class CommandFailed(Exception):
    """A contestant did not end well."""


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
    parser.add_argument('--epochs', type=positive_int, default=4, metavar='N', help='epochs that are timed')
    parser.add_argument('--rounds', type=positive_int, default=10, metavar='N')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write a row for each contestant')
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error('--rounds must be at least 2, or there is no spread.')
    args.data_dir = args.data_dir or digits_folder()
    for path in (args.data_dir / 'train', args.data_dir / 'validation', args.timm_train):
        if path is not None and not path.exists():
            parser.error(f'{path} does not exist.')
    return args


def command(contestant: str, args: argparse.Namespace, epochs: int, output: str) -> List[str]:
    """The words of a contestant's command."""
    if contestant == BARE:
        words = [_SCRIPTS / 'benchmarking' / 'bare_loop.py', args.data_dir, args.model, epochs, args.batch_size,
                 args.workers, args.device]
    else:
        classes = sum(path.is_dir() for path in (args.data_dir / 'train').iterdir())
        words = [_SCRIPTS / 'train.py' if contestant == OURS else args.timm_train]
        options = {
            'data-dir': args.data_dir, 'model': args.model, 'num-classes': classes, 'epochs': epochs,
            'batch-size': args.batch_size, 'workers': args.workers, 'opt': 'sgd', 'lr': 0.1, 'weight-decay': 2e-5,
            'warmup-epochs': 0, 'device': args.device, 'output': output,
        }
        words += [word for key, value in options.items() for word in (f'--{key}', value)]
    return [sys.executable, *map(str, words)]


def seconds_of(contestant: str, args: argparse.Namespace, epochs: int) -> float:
    """Run a contestant; returns the seconds that it took.

    Raises:
        CommandFailed: It ended with an error.
    """
    with tempfile.TemporaryDirectory() as output:
        words = command(contestant, args, epochs, output)
        start = time.perf_counter()
        ended = subprocess.run(words, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if ended.returncode:
        raise CommandFailed(f'{shlex.join(words)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}')
    return seconds


def epoch_seconds(contestant: str, args: argparse.Namespace) -> float:
    """What one epoch costs a contestant."""
    one = seconds_of(contestant, args, 1)
    return (seconds_of(contestant, args, 1 + args.epochs) - one) / args.epochs


def measure(args: argparse.Namespace) -> List[Row]:
    """Time the contestants in turns; returns a row for each."""
    contestants = [BARE, OURS, *([TIMM] if args.timm_train else [])]
    seconds: Dict[str, List[float]] = {name: [] for name in contestants}
    for _ in tqdm(range(args.rounds), desc='rounds', leave=False, disable=None):
        for name in contestants:
            seconds[name].append(epoch_seconds(name, args))
    rows = []
    for name, values in seconds.items():
        lower, median, upper = statistics.quantiles(values, n=4, method='inclusive')
        rows.append({
            'part': 'training', 'subject': args.model, 'dtype': 'float32', 'phase': 'epoch', 'contestant': name,
            'status': 'ok', 'batch_size': args.batch_size, 'rounds': args.rounds, 'median_s': median,
            'spread': (upper - lower) / median,
            'base_ratio': statistics.median(ours / bare for ours, bare in zip(values, seconds[BARE])),
        })
    return rows


def main(argv: Optional[List[str]] = None) -> int:
    """Measure, print and write; returns the exit code."""
    args = parse_args(argv)
    try:
        rows = measure(args)
    except CommandFailed as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    # Without the folders of this machine.
    words = sys.argv[1:] if argv is None else argv
    words = [Path(word).name if word == str(args.timm_train) else word for word in words]
    facts = {**environment(args.device), 'command': shlex.join(['python', 'scripts/benchmark_training.py', *words])}
    rows = [{**facts, **row} for row in rows]
    for row in rows:
        print(f'{row["contestant"]}: {row["median_s"]:.3f} s an epoch, spread {100 * row["spread"]:.1f} %, '
              f'{row["base_ratio"]:.3f} of the bare loop')
    if args.csv is not None:
        write_rows(rows, args.csv)
    return 0


if __name__ == '__main__':
    sys.exit(main())
