"""Train a Dit-CNN, or any timm model.

Without arguments: dit_resnet20 on scikit-learn's handwritten digits, a few minutes on two CPU cores. On your own
images: `python scripts/train.py --data-dir DIR --model dit_resnet18 --epochs 100 --lr 0.1`, where DIR holds `train`
and `validation`, each a folder with a folder for every class, or a .tar of that.

The output folder receives model.safetensors (the weights that are kept), args.yaml (every option), recipe.yaml (those
that --config set), environment.csv (a row for each start: machine and versions), summary.csv (a row for each epoch),
results.csv (a row for each split that the kept weights were evaluated on), curves.png and checkpoints. `--resume
FOLDER` resumes a run that was stopped, and ends with the weights it would have had.

Several processes: `torchrun --nproc_per_node=N scripts/train.py ...`; --batch-size is that of one process.
"""

import argparse
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, Optional

import yaml
from timm.utils import get_outdir, random_seed, setup_default_logging

from ..data.streams import is_stream
from ..errors import UserError, message_of
from ..files import write_file
from ..printing import set_up_printing
from ..training.checkpoint import list_checkpoints
from ..training.config import RECIPE, Parser, parse, read_options, recipe_text
from ..training.engine import summary_line
from ..training.interrupt import Interrupted
from ..training.model import resolve_source
from ..training.options import (
    FREE_OPTIONS,
    add_data_options,
    add_input_options,
    add_model_options,
    add_training_options,
)
from ..training.processes import Processes
from ..training.trainer import Trainer
from ..training.variants import FROZEN, resolve

_DIGITS_RECIPE = Path(__file__).parent.parent / 'training' / 'digits.yaml'


def create_parser() -> Parser:
    """All options."""
    parser = Parser(description=__doc__)
    parser.add_argument('-c', '--config', type=Path, metavar='FILE', help='YAML file that sets any option')
    add_data_options(parser)
    add_input_options(parser)
    add_model_options(parser)
    add_training_options(parser)
    return parser


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the command line; without arguments, the recipe for the digits."""
    parser = create_parser()
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument('--resume')
    resumed = first.parse_known_args(argv)[0].resume
    if resumed is not None:
        args = _parse_resumed(parser, argv, Path(resumed) / 'args.yaml')
    else:
        args = parse(parser, argv)
        if args.config is None and not args.data_dir and not args.dataset:
            args = parse(parser, argv, config=_DIGITS_RECIPE)
    _check(parser, args)
    _resolve(parser, args)
    if args.data_dir and '://' not in args.data_dir and '::' not in args.data_dir:
        # So that a run can be resumed, and evaluated, from any folder.
        args.data_dir = str(Path(args.data_dir).absolute())
    if args.class_map and Path(args.class_map).is_file():
        args.class_map = str(Path(args.class_map).absolute())
    return args


def _parse_resumed(parser: argparse.ArgumentParser, argv: Optional[List[str]], path: Path) -> argparse.Namespace:
    """Parse the command line on top of the options of a run, which it may not change."""
    if not path.is_file():
        parser.error(f'--resume {path.parent} is no folder of a run: it has no {path.name}.')
    options = read_options(parser, path)
    parser.set_defaults(**options)
    args = parse(parser, argv)
    _resolve(parser, args)
    # Shards of a stream are dealt out to the processes that load them.
    fixed = ('workers',) if is_stream(args.dataset) else ()
    changed = [
        key for key, value in options.items()
        if (key in fixed or key not in FREE_OPTIONS) and getattr(args, key, value) != value
    ]
    if changed:
        changes = ', '.join(f'--{key.replace("_", "-")} is {options[key]}, not {getattr(args, key)}' for key in changed)
        parser.error(f'--resume keeps the options of the run: {changes}.')
    return args


def _resolve(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Express what names a network in two words by its own options."""
    try:
        resolve_source(args)
    except UserError as error:
        parser.error(str(error))
    resolve(args)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if (args.mixup > 0 or args.cutmix > 0) and args.batch_size % 2:
        parser.error(f'--mixup and --cutmix pair images: --batch-size must be even; got {args.batch_size}.')
    if args.variant == FROZEN and args.train_only:
        parser.error(f'--variant {FROZEN} says what is not trained, and --train-only what is: leave one of them out.')
    if args.quadratic_lr_scale <= 0:
        parser.error(f'--quadratic-lr-scale must be positive; got {args.quadratic_lr_scale}. To freeze the quadratic '
                     f'terms, train only others with --train-only.')


def _open_folder(args: argparse.Namespace, processes: Processes) -> Path:
    """The folder of the run, made new unless the run resumes; the same for all processes."""
    if args.resume is not None:
        return Path(args.resume)
    folder = ''
    if processes.is_primary:
        experiment = args.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{args.model}'
        folder = get_outdir(args.output, experiment, inc=True)
        write_options(args, Path(folder))
    return Path(processes.broadcast(folder))


def write_options(args: argparse.Namespace, folder: Path) -> None:
    """Write the options of a run, and those of its recipe, into its folder."""
    if args.config is not None:
        write_file(folder / RECIPE, recipe_text(args.config).encode())
    write_file(folder / 'args.yaml', _options_text(args).encode())


def _options_text(args: argparse.Namespace) -> str:
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    return yaml.safe_dump({key: value for key, value in options.items() if key not in ('resume', 'dry_run')})


def create_trainer(args: argparse.Namespace, processes: Processes, **kwargs: Any) -> Trainer:
    """Build all that a run is made of; see `Trainer`."""
    random_seed(args.seed)
    if args.resume is not None and list_checkpoints(Path(args.resume)):
        # The checkpoint has all weights: none are fetched that it would replace.
        args.pretrained = False
    return Trainer(args, processes, **kwargs)


def run(args: argparse.Namespace, processes: Processes) -> Optional[Dict[str, Any]]:
    """Train as the options say; returns the results, or None after a dry run."""
    trainer = create_trainer(args, processes)
    if processes.is_primary:
        print(trainer.describe())
    if args.dry_run:
        from ..training.costs import describe_costs
        print(_options_text(args), end='')
        print(describe_costs(trainer))
        return None
    folder = _open_folder(args, processes)
    if list_checkpoints(folder):
        trainer.restore(folder)
    if processes.is_primary:
        if list_checkpoints(folder):
            print(f'resumes after {trainer.epoch} of {trainer.epochs} epochs and {trainer.batch} batches'
                  if trainer.epoch < trainer.epochs else 'The run has ended: only its results are written again.')
        elif args.resume is not None:
            print(f'{folder} has no checkpoint yet: the run begins.')
        print(f'writes to {folder}', flush=True)
    try:
        results = trainer.fit(folder)
    except KeyboardInterrupt:
        # While nothing is trained: at the first save, or at the last evaluation.
        raise Interrupted('SIGINT', folder, processes.world_size) from None
    if processes.is_primary:
        if results:
            chosen = f'best on {trainer.val_name}' if args.val_fraction else 'last'
            print(f'epoch {results["epoch"] + 1}, the {chosen}; on {results["split"]}: loss {results["loss"]:.4f}')
            print(summary_line(results, args.model, str(folder / 'model.safetensors')))
        else:
            print(f'trained, and evaluated on nothing: --val-split and --test-split name splits. {folder}')
    return results


def main(argv: Optional[List[str]] = None) -> None:
    """Train, evaluate after each epoch, and save."""
    set_up_printing()
    args = parse_args(argv)
    processes = None
    try:
        processes = Processes(args)
        if processes.is_primary:
            setup_default_logging()
        run(args, processes)
    except (UserError, OSError) as error:
        sys.exit(f'error: {message_of(error)}')
    except Interrupted as stopped:
        if processes.is_primary:
            print(stopped, flush=True)
        # What a shell expects of a program that Ctrl-C ended.
        sys.exit(130)
    finally:
        if processes is not None:
            processes.close()


if __name__ == '__main__':
    main()
