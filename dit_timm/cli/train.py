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

import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, Optional

import yaml
from timm.utils import get_outdir, random_seed, setup_default_logging

from ..config.recipe import RECIPE, recipe_text
from ..config.training import TrainingConfig, parse_training
from ..errors import UserError, message_of
from ..files import write_file
from ..printing import set_up_printing
from ..training.checkpoint import list_checkpoints
from ..training.engine import summary_line
from ..training.fit import fit
from ..training.interrupt import Interrupted
from ..training.process_group import ProcessGroup
from ..training.resume import restore
from ..training.run import Run, create_run, describe


def parse_args(argv: Optional[List[str]] = None) -> TrainingConfig:
    """Parse the command line; see `parse_training`."""
    return parse_training(argv, __doc__)


def _open_folder(args: TrainingConfig, processes: ProcessGroup) -> Path:
    """The folder of the run, made new unless the run resumes; the same for all processes."""
    if args.resume is not None:
        return Path(args.resume)
    folder = ''
    if processes.is_primary:
        experiment = args.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{args.model}'
        folder = get_outdir(args.output, experiment, inc=True)
        write_options(args, Path(folder))
    return Path(processes.broadcast(folder))


def write_options(args: TrainingConfig, folder: Path) -> None:
    """Write the options of a run, and those of its recipe, into its folder."""
    if args.config is not None:
        write_file(folder / RECIPE, recipe_text(args.config).encode())
    write_file(folder / 'args.yaml', _options_text(args).encode())


def _options_text(args: TrainingConfig) -> str:
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    return yaml.safe_dump({key: value for key, value in options.items() if key not in ('resume', 'dry_run')})


def seeded_run(args: TrainingConfig, processes: ProcessGroup, **kwargs: Any) -> Run:
    """Build all that a run is made of, with the random numbers of its seed; see `create_run`."""
    random_seed(args.seed)
    if args.resume is not None and list_checkpoints(Path(args.resume)):
        # The checkpoint has all weights: none are fetched that it would replace.
        args.pretrained = False
    return create_run(args, processes, **kwargs)


def train(args: TrainingConfig, processes: ProcessGroup) -> Optional[Dict[str, Any]]:
    """Train as the options say; returns the results, or None after a dry run."""
    # A dry run fetches no weights.
    run = seeded_run(replace(args, pretrained=False) if args.dry_run else args, processes)
    if processes.is_primary:
        print(describe(run))
    if args.dry_run:
        from ..training.costs import describe_costs
        print(_options_text(args), end='')
        print(describe_costs(run))
        return None
    folder = _open_folder(args, processes)
    if list_checkpoints(folder):
        restore(run, folder)
    if processes.is_primary:
        if list_checkpoints(folder):
            print(f'resumes after {run.state.epoch} of {run.epochs} epochs and {run.state.batch} batches'
                  if run.state.epoch < run.epochs else 'The run has ended: only its results are written again.')
        elif args.resume is not None:
            print(f'{folder} has no checkpoint yet: the run begins.')
        print(f'writes to {folder}', flush=True)
    try:
        results = fit(run, folder)
    except KeyboardInterrupt:
        # While nothing is trained: at the first save, or at the last evaluation.
        raise Interrupted('SIGINT', folder, processes.world_size) from None
    if processes.is_primary:
        if results:
            chosen = f'best on {run.data.val_name}' if args.val_fraction else 'last'
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
        processes = ProcessGroup(args.device)
        args.device = str(processes.device)
        if processes.is_primary:
            setup_default_logging()
        train(args, processes)
    except (UserError, OSError) as error:
        sys.exit(f'error: {message_of(error)}')
    except Interrupted as stopped:
        if processes is not None and processes.is_primary:
            print(stopped, flush=True)
        # What a shell expects of a program that Ctrl-C ended.
        sys.exit(130)
    finally:
        if processes is not None:
            processes.close()


if __name__ == '__main__':
    main()
