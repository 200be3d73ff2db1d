"""Trained networks: from a run's folder or file, or pretrained."""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import yaml
from safetensors import SafetensorError, safe_open
from torch import nn

from dit_timm.models.weight_files import load_weights, read_weights

from .data import held_out_name
from .logs import read_csv
from .model import build_model

CLASSES = 'classes'


def add_checkpoint_option(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """The option that names trained weights, of one network or of several."""
    parser.add_argument(
        '--checkpoint', type=Path, nargs='+' if several else None, metavar='FILE',
        help='weights as safetensors, or a run\'s folder' + ('; several are evaluated one after the other' * several),
    )


def parse_with_run(
        parser: argparse.ArgumentParser, argv: Optional[List[str]] = None, checkpoint: Optional[Path] = None,
) -> argparse.Namespace:
    """Parse a command line, with the options of the run that wrote `--checkpoint` as defaults.

    Ends the process, as a parser does, where weights are neither named nor pretrained.

    Args:
        parser: A parser with the options of `add_checkpoint_option` and `add_model_options`.
        argv: Command line; that of the process if None.
        checkpoint: The one to take where `--checkpoint` names several.
    """
    if checkpoint is None:
        first = argparse.ArgumentParser(add_help=False)
        first.add_argument('--checkpoint', type=Path)
        checkpoint = first.parse_known_args(argv)[0].checkpoint
    if checkpoint is not None and checkpoint.is_dir():
        checkpoint = checkpoint / 'model.safetensors'
    options = checkpoint.with_name('args.yaml') if checkpoint else None
    if options is not None and options.is_file():
        known = {action.dest for action in parser._actions}
        run: Mapping[str, Any] = yaml.safe_load(options.read_text())
        # The weights come from the checkpoint, not from where the run started.
        parser.set_defaults(**{key: value for key, value in run.items() if key in known and key != 'pretrained'})
        parser.set_defaults(val_split=_split_of(run))
    elif checkpoint is not None and checkpoint.is_file():
        parser.set_defaults(**_named_model(checkpoint))
    args = parser.parse_args(argv)
    args.checkpoint = checkpoint
    if checkpoint is None and not args.pretrained:
        parser.error('name the weights: --checkpoint FILE or --pretrained.')
    if checkpoint is not None and not checkpoint.is_file():
        parser.error(f'--checkpoint {checkpoint} is not a file.')
    return args


def _split_of(run: Mapping[str, Any]) -> str:
    """The split that a run's last results are of."""
    if run['test_split']:
        return run['test_split']
    return held_out_name(run['val_fraction'], run['train_split']) if run['val_fraction'] else run['val_split']


def _named_model(checkpoint: Path) -> Mapping[str, str]:
    """The model that a file of weights names, if it does."""
    try:
        with safe_open(checkpoint, framework='pt') as file:
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError):
        # Of damaged files speaks who loads them.
        return {}
    return {'model': metadata['model']} if 'model' in metadata else {}


def result_on_test(run: Path) -> Dict[str, str]:
    """The row of a run's results.csv that is of its test split.

    Raises:
        ValueError: There is none.
    """
    split = yaml.safe_load((run / 'args.yaml').read_text())['test_split']
    tests = [row for row in read_csv(run / 'results.csv') if row['split'] == split]
    if not tests:
        raise ValueError(f'{run} has no result on a test split; train with --test-split.')
    # The first may be of the same split, looked at after every epoch.
    return tests[-1]


def load_trained(args: argparse.Namespace) -> nn.Module:
    """Build the network that the options name, with its trained weights.

    Raises:
        DamagedFile: The weights are damaged, or of another network.
    """
    model = build_model(args)
    if args.checkpoint is not None:
        load_weights(model, read_weights(args.checkpoint), args.checkpoint)
    return model.eval()


def classes_metadata(names: Optional[List[str]]) -> Mapping[str, str]:
    """What a file of weights says of its classes; see `read_classes`."""
    return {CLASSES: json.dumps(names)} if names else {}


def known_classes(args: argparse.Namespace, model: nn.Module) -> Optional[List[str]]:
    """Names of the classes: those in the file of weights, or the pretrained network's; None where they do not say."""
    if args.checkpoint is not None:
        with safe_open(args.checkpoint, framework='pt') as file:
            return json.loads((file.metadata() or {}).get(CLASSES, 'null'))
    # Of another number of classes, the pretrained ones are not the network's any more.
    names = model.pretrained_cfg.get('label_names')
    return list(names) if names and len(names) == model.num_classes else None


def read_classes(args: argparse.Namespace, model: nn.Module) -> Tuple[str, ...]:
    """Names of the classes, or numbers where nothing says them."""
    return tuple(known_classes(args, model) or map(str, range(model.num_classes)))
