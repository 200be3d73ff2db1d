"""Evaluate a checkpoint, or pretrained weights.

`python scripts/validate.py --checkpoint RUN/model.safetensors` evaluates what scripts/train.py wrote with the options
in RUN/args.yaml: the same data, precision and batch size, and hence the same numbers. Options override them.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

import yaml
from timm.utils import setup_default_logging
from training.data import class_names, data_config, open_split
from training.engine import evaluate, summary_line
from training.images import UnreadableImage
from training.loaders import eval_loader
from training.model import build_model
from training.options import add_data_options, add_model_options
from training.weights import DamagedFile, load_weights, read_weights


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the command line, with the options of the run that wrote the checkpoint as defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', type=Path, metavar='FILE', help='weights as safetensors, or a run\'s folder')
    add_data_options(parser)
    add_model_options(parser)
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument('--checkpoint', type=Path)
    checkpoint = first.parse_known_args(argv)[0].checkpoint
    if checkpoint is not None and checkpoint.is_dir():
        checkpoint = checkpoint / 'model.safetensors'
    options = checkpoint.with_name('args.yaml') if checkpoint else None
    if options is not None and options.is_file():
        known = {action.dest for action in parser._actions}
        run = yaml.safe_load(options.read_text())
        # The weights come from the checkpoint, not from where the run started.
        parser.set_defaults(**{key: value for key, value in run.items() if key in known and key != 'pretrained'})
    args = parser.parse_args(argv)
    args.checkpoint = checkpoint
    if checkpoint is None and not args.pretrained:
        parser.error('name the weights: --checkpoint FILE or --pretrained.')
    if checkpoint is not None and not checkpoint.is_file():
        parser.error(f'--checkpoint {checkpoint} is not a file.')
    return args


def main(argv: Optional[List[str]] = None) -> None:
    """Evaluate and print."""
    setup_default_logging()
    args = parse_args(argv)
    dataset = open_split(args, args.val_split)
    classes = class_names(dataset)
    if args.checkpoint is not None and classes is not None:
        args.num_classes = args.num_classes or len(classes)
    model = build_model(args)
    if args.checkpoint is not None:
        load_weights(model, read_weights(args.checkpoint), args.checkpoint)
    if classes is not None and model.num_classes < len(classes):
        sys.exit(f'{args.model} has {model.num_classes} classes, but the data have {len(classes)}.')
    loader = eval_loader(args, dataset, data_config(args, model))
    metrics = evaluate(model, loader, args, 'evaluation')
    print(summary_line(metrics, args.model, str(args.checkpoint or 'pretrained')))


if __name__ == '__main__':
    try:
        main()
    except (OSError, DamagedFile, UnreadableImage) as error:
        sys.exit(f'error: {error}')
