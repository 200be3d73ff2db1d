"""Evaluate a checkpoint, or pretrained weights.

`python scripts/validate.py --checkpoint RUN/model.safetensors` evaluates what scripts/train.py wrote with the options
in RUN/args.yaml: the same data, precision and batch size, and hence the same numbers. Options override them.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

from timm.utils import setup_default_logging
from training.confusion import Confusion
from training.data import class_names, data_config, open_split
from training.engine import evaluate, summary_line
from training.images import UnreadableImage
from training.loaders import eval_loader
from training.logs import write_csv
from training.options import add_data_options, add_model_options
from training.trained import add_checkpoint_option, load_trained, parse_with_run
from training.weights import DamagedFile


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the command line, with the options of the run that wrote the checkpoint as defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint_option(parser)
    parser.add_argument('--results-file', type=Path, metavar='FILE', help='write a CSV row as timm\'s validate.py does')
    parser.add_argument('--per-class', type=Path, metavar='FILE', help='write a CSV row for each class')
    parser.add_argument('--confusion', type=Path, metavar='FILE', help='draw the confusion matrix, as a PNG')
    add_data_options(parser)
    add_model_options(parser)
    return parse_with_run(parser, argv)


def main(argv: Optional[List[str]] = None) -> None:
    """Evaluate and print."""
    setup_default_logging()
    args = parse_args(argv)
    dataset = open_split(args, args.val_split)
    classes = class_names(dataset)
    if args.checkpoint is not None and classes is not None:
        args.num_classes = args.num_classes or len(classes)
    model = load_trained(args)
    if classes is not None and model.num_classes < len(classes):
        sys.exit(f'{args.model} has {model.num_classes} classes, but the data have {len(classes)}.')
    config = data_config(args, model)
    confusion = Confusion(model.num_classes)
    metrics = evaluate(model, eval_loader(args, dataset, config), args, 'evaluation', observe=confusion.update)
    if args.results_file is not None:
        top1, top5 = round(metrics['top1'], 4), round(metrics['top5'], 4)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        write_csv([{
            'model': args.model, 'top1': top1, 'top1_err': round(100 - top1, 4), 'top5': top5,
            'top5_err': round(100 - top5, 4), 'param_count': round(parameters / 1e6, 2),
            'img_size': config['input_size'][-1], 'crop_pct': config['crop_pct'],
            'interpolation': config['interpolation'],
        }], args.results_file)
    if args.per_class is not None:
        write_csv(confusion.per_class(classes), args.per_class)
    if args.confusion is not None:
        confusion.plot(classes, args.confusion)
    print(summary_line(metrics, args.model, str(args.checkpoint or 'pretrained')))


if __name__ == '__main__':
    try:
        main()
    except (OSError, DamagedFile, UnreadableImage) as error:
        sys.exit(f'error: {error}')
