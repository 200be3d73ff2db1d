"""The trained networks that experiments look at, and the images that they are shown."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, List, NamedTuple, Optional

import yaml

from ..cli.validate import parse_args
from ..data.loaders import Batches, eval_loader
from ..data.splits import data_config, open_evaluated
from ..models.network import Network
from ..training.trained import load_trained

_QUICK_IMAGES = 200


class Trained(NamedTuple):
    """A trained network.

    Attributes:
        name: Of its run, or of its weights.
        seed: Of its run; 0 of weights in the package.
        args: The options of scripts/validate.py that name it.
        model: Itself, in evaluation mode.
        dataset: The images.
        loader: Batches of them.
        images: How many.
    """
    name: str
    seed: int
    args: Any
    model: Network
    dataset: Any
    loader: Batches
    images: int


def add_options(parser: ArgumentParser) -> None:
    """Options that name networks and images."""
    parser.add_argument('runs', nargs='*', type=Path, metavar='RUN', help='default: the weights in the package')
    parser.add_argument('--data-dir', metavar='DIR', help='where the data are, if not where the runs had them')
    parser.add_argument('--split', default='test', metavar='NAME', help='of the data (default: %(default)s)')


def commands(args: Namespace) -> List[List[str]]:
    """For each network the command line of scripts/validate.py that names it."""
    names = [['--checkpoint', str(run)] for run in args.runs] or [['--pretrained', '--model', 'dit_resnet20.cifar10']]
    data = ['--data-dir', args.data_dir] if args.data_dir else []
    return [[*name, *data, '--val-split', args.split, '--workers', '0'] for name in names]


def image_limit(args: Namespace) -> Optional[int]:
    """How many images are looked at; None for all."""
    return _QUICK_IMAGES if args.quick else None


def open_network(words: List[str], limit: Optional[int]) -> Trained:
    """Load a network and open its images.

    Args:
        words: See `commands`.
        limit: How many images, evenly from all; None for all.
    """
    args, = parse_args(words)
    dataset, indices = open_evaluated(args)
    indices = list(range(len(dataset)) if indices is None else indices)
    if limit is not None:
        indices = indices[::max(1, len(indices) // limit)]
    model = load_trained(args)
    loader = eval_loader(args, dataset, data_config(args, model), indices)
    run = args.checkpoint.parent if args.checkpoint else None
    return Trained(run.name if run else args.model, _seed(run), args, model, dataset, loader, len(indices))


def _seed(run: Optional[Path]) -> int:
    path = run / 'args.yaml' if run else None
    return yaml.safe_load(path.read_text())['seed'] if path and path.is_file() else 0
