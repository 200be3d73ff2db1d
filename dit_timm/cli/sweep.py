"""Train many networks, variants and seeds: `python scripts/sweep.py SWEEP.yaml --data-dir DIR`.

The file says what is trained, in order of priority (see scripts/sweeps and training/sweep.py). Each run is what
scripts/train.py would make of the same options, and leaves the same folder, so that dit-validate, dit-record and
`python -m hub` work on it. On a GPU many are trained at once (`--together`), on a CPU one after the other; to use more
cores, start the command once more: two processes never train the same run.

Call it again after it was stopped, by Ctrl-C, a power cut or `--minutes`: runs that have ended are left alone, the
others go on. With `--minutes` it trains as many whole runs as fit, by the speed that it measures.
"""

import copy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Set

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from rich.text import Text
from timm.utils import setup_default_logging

from ..analysis.costs import count_costs
from ..analysis.statistics import paired, summary
from ..config.options import Options, Parser, option
from ..config.parts import PLAIN, default_device
from ..config.recipe import RECIPE, differences, recipe_text, sha256_of
from ..config.training import TrainingConfig, dit_network, parse_training
from ..data.resident import ResidentSplits
from ..errors import InvalidInputError, MissingFileError, message_of
from ..printing import counted, first_of, set_up_printing
from ..training.checkpoint import list_checkpoints
from ..training.interrupt import Interrupt
from ..training.logs import read_csv
from ..training.pool import RUN_ERRORS, Job, Pool, Waiting
from ..training.process_group import ProcessGroup
from ..training.resume import restore
from ..training.run import describe, open_data
from ..training.sweep import Sweep, SweepRun, read_sweep
from ..training.trained import result_on_test
from . import train

# A guess: small networks leave a large GPU idle between their kernels. scripts/benchmark_sweep.py measures it.
_TOGETHER_ON_GPU = 10
_CHECKPOINT_SECONDS = 60.


@dataclass(kw_only=True)
class SweepConfig(Options):
    """The options of a sweep."""

    sweep: Path = option(metavar='SWEEP.yaml', positional=True)
    data_dir: Optional[str] = option(None, 'folder with the data', metavar='DIR')
    # The defaults of these two depend on others: see `parse_args`.
    output: Path = option(None, 'folder of the runs (default: output/sweeps/NAME)', metavar='DIR')
    minutes: Optional[float] = option(None, 'time for all (default: no limit)', metavar='M', low=0)
    together: int = option(
        None, f'runs at once (default: {_TOGETHER_ON_GPU} on a GPU, 1 on a CPU)', metavar='N', low=1,
    )
    device: str = option(default_device)
    skip_recorded: Optional[Path] = option(
        None, 'leave out runs of which the CSV that dit-record writes has a row, with the same recipe and options',
        metavar='CSV',
    )
    dry_run: bool = option(False, 'list the runs and how far they are')


def parse_args(argv: Optional[List[str]] = None) -> SweepConfig:
    """Parse the command line."""
    args = SweepConfig(**Parser(SweepConfig, __doc__).given(argv))
    args.output = args.output or Path('output', 'sweeps', args.sweep.stem)
    args.together = args.together or (_TOGETHER_ON_GPU if args.device.startswith('cuda') else 1)
    return args


class Runs:
    """The runs of a sweep and their folders.

    Args:
        args: Options.
        sweep: The sweep.

    Raises:
        InvalidInputError: A folder holds a run with another recipe.
        SystemExit: An option is unknown, or a folder holds a run with other options.
    """

    def __init__(self, args: SweepConfig, sweep: Sweep) -> None:
        self.args, self.sweep = args, sweep
        self.options = {run.name: self._options(run) for run in sweep.runs}
        self.processes = ProcessGroup(args.device)
        any_options = next(iter(self.options.values()))
        self.resident = ResidentSplits(args.device, any_options.data_cache)
        self._noted: Set[str] = set()

    def folder(self, name: str) -> Path:
        """The folder of a run."""
        return self.args.output / name

    def _options(self, run: SweepRun) -> TrainingConfig:
        """Options of a run; those of a run that has begun must be the same."""
        folder = self.folder(run.name)
        words = [
            '--config', str(run.recipe), '--model', run.model, '--variant', run.variant, '--seed', str(run.seed),
            '--output', str(self.args.output), '--experiment', run.name, '--device', self.args.device,
        ]
        if self.args.data_dir:
            words += ['--data-dir', self.args.data_dir]
        if (folder / 'args.yaml').is_file():
            if (folder / RECIPE).read_text() != recipe_text(run.recipe):
                raise InvalidInputError(
                    f'{folder} is of a run with another recipe than {run.recipe} is now. Name another --output, or '
                    f'remove the folder.'
                )
            words += ['--resume', str(folder)]
        options = {'checkpoint_seconds': _CHECKPOINT_SECONDS, **run.options}
        return parse_training(words, options=options, source=str(self.sweep.path))

    def has_ended(self, name: str) -> bool:
        """Whether the results of a run are written."""
        return (self.folder(name) / 'results.csv').is_file()

    def open(self, name: str) -> Optional[Job]:
        """Make a run that is to be trained; None if another process has it, or has ended it.

        Raises:
            InvalidInputError: The data are not those of the runs in the folder.
        """
        folder, options = self.folder(name), copy.deepcopy(self.options[name])
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / 'lock')
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f'{name}: another process trains it')
            return None
        try:
            if self.has_ended(name):
                lock.release()
                return None
            _check_together(options, self.args)
            run = train.seeded_run(options, self.processes, resident=self.resident, show=False)
            self._check_data(run.data_digest)
            self._note(name, describe(run).splitlines()[1:])
            if not (folder / 'args.yaml').is_file():
                if list_checkpoints(folder):
                    raise InvalidInputError(f'{folder} has checkpoints, and no args.yaml that says of what: remove it.')
                train.write_options(options, folder)
            if list_checkpoints(folder):
                restore(run, folder)
        except BaseException:
            lock.release()
            raise
        macs = count_costs(copy.deepcopy(run.model).cpu(), run.config['input_size']).gmacs
        return Job(name, run, folder, macs, lock.release)

    def check_data_are_there(self, name: str) -> None:
        """Open the data of a run, so that what is wrong with them is said once and before anything is trained.

        Raises:
            UserError: See `open_data`.
        """
        open_data(copy.deepcopy(self.options[name]))

    def _note(self, name: str, lines: List[str]) -> None:
        """Print what is worth knowing of a run, once for all runs of which it is true."""
        for line in lines:
            if line not in self._noted:
                self._noted.add(line)
                print(f'{name}: {line}')

    def _check_data(self, digest: Optional[str]) -> None:
        for name in self.options:
            for start in read_csv(self.folder(name) / 'environment.csv'):
                if digest and start.get('images_sha256', '') not in ('', digest):
                    raise InvalidInputError(
                        f'{self.folder(name)} was trained on other images than {self.args.data_dir} has now. Name '
                        f'another --output.'
                    )


def _check_together(options: TrainingConfig, args: SweepConfig) -> None:
    """Refuse what runs in one process would share."""
    if options.log_wandb:
        raise InvalidInputError('--log-wandb has one run in a process; --log-tensorboard can have many.')
    draws = options.drop > 0 or (options.drop_path or 0) > 0
    if args.together > 1 and draws and args.device.startswith('cuda') and options.cuda_graph is not False:
        # A graph reads the seed where all others do.
        raise InvalidInputError('--drop and --drop-path draw in the captured step: --together 1, or cuda_graph: false.')


def print_results(runs: Runs) -> None:
    """Print a table of the runs that have ended, and the command that records them."""
    table = Table(title=Text(f'{runs.sweep.data}, {runs.sweep.path.name}: top-1 on the test split (%)'))
    for name in ('network', 'variant', 'runs', 'mean ± deviation', 'against plain, 95 % interval'):
        table.add_column(name)
    results: Dict[str, Dict[str, Dict[str, float]]] = {}
    ended = []
    for run in runs.sweep.runs:
        if runs.has_ended(run.name):
            ended.append(str(runs.folder(run.name)))
            top1 = float(result_on_test(runs.folder(run.name))['top1'])
            results.setdefault(run.model, {}).setdefault(run.variant, {})[str(run.seed)] = top1
    for model, variants in results.items():
        for variant, by_seed in variants.items():
            difference = paired(by_seed, variants[PLAIN]) if variant != PLAIN and PLAIN in variants else None
            table.add_row(
                Text(model), variant, str(len(by_seed)), str(summary(by_seed.values())),
                difference.interval() if difference else '',
            )
    if ended:
        Console().print(table)
        # The module, since a checkout that is not installed has no console commands.
        command = ['python', '-m', 'dit_timm.cli.record', '--data', runs.sweep.data, *ended]
        print(f'To record them in {runs.args.output / "runs.csv"}: {shlex.join(command)}')


def main(argv: Optional[List[str]] = None) -> int:
    """Train; returns the exit code: 1 if a run failed, 130 after Ctrl-C."""
    set_up_printing()
    args = parse_args(argv)
    setup_default_logging()
    try:
        return _train(args)
    except (*RUN_ERRORS, OSError) as error:
        print(f'error: {message_of(error)}', file=sys.stderr)
        return 1


def _train(args: SweepConfig) -> int:
    runs = Runs(args, read_sweep(args.sweep))
    recorded = _recorded(args, runs)
    waiting = [
        run.name for run in runs.sweep.runs if not runs.has_ended(run.name) and run.name not in recorded
    ]
    total = counted(len(runs.sweep.runs), 'run')
    print(f'{total}: {len(waiting)} to train, {len(recorded)} recorded, the others ended')
    if waiting:
        runs.check_data_are_there(waiting[0])
    if args.dry_run:
        for run in runs.sweep.runs:
            begun = (runs.folder(run.name) / 'args.yaml').is_file()
            state = 'waits' if run.name in waiting else 'recorded' if run.name in recorded else 'has ended'
            print(f'{"has begun" if begun and state == "waits" else state:10}{run.name}')
        return 0
    with Interrupt() as interrupt:
        pool = Pool(
            [Waiting(name, lambda name=name: runs.open(name)) for name in waiting], args.together,
            None if args.minutes is None else 60 * args.minutes, interrupt, args.device, _report,
        )
        pool.run()
    print_results(runs)
    # What several runs failed of, once.
    for message in dict.fromkeys(pool.failed.values()):
        names = [name for name, other in pool.failed.items() if other == message]
        print(f'error: {first_of(names)}: {message}', file=sys.stderr)
    left = [name for name in waiting if not runs.has_ended(name) and name not in pool.failed]
    if left:
        print(f'{counted(len(left), "run")} left; the same command resumes: {first_of(left)}')
    return 130 if interrupt.requested else bool(pool.failed)


def _report(line: str) -> None:
    print(line, flush=True)


def _recorded(args: SweepConfig, runs: Runs) -> List[str]:
    """Names of the runs that a CSV of results has."""
    if args.skip_recorded is None:
        return []
    if not args.skip_recorded.is_file():
        raise MissingFileError(f'--skip-recorded {args.skip_recorded} is no file.')
    rows = {
        (row['data'], row['model'], row['variant'], row['recipe_sha256'], row['options'], row['seed'])
        for row in read_csv(args.skip_recorded)
    }

    def is_recorded(run: SweepRun) -> bool:
        recipe = sha256_of(recipe_text(run.recipe))
        parsed = runs.options[run.name]
        options = differences(vars(parsed), run.recipe)
        return (runs.sweep.data, dit_network(parsed.model), run.variant, recipe, options, str(run.seed)) in rows

    return [run.name for run in runs.sweep.runs if is_recorded(run)]


if __name__ == '__main__':
    sys.exit(main())
