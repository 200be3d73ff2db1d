"""Command line options, named as in timm's train.py, and the YAML files that set them."""

import argparse
import difflib
import sys
from pathlib import Path
from typing import List, Optional

import torch
import yaml
from timm.utils import ParseKwargs


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which images are read, and how."""
    group = parser.add_argument_group('data')
    group.add_argument('--data-dir', metavar='DIR', help='folder with the data (default: handwritten digits)')
    group.add_argument('--dataset', default='', metavar='NAME', help='timm dataset, such as torch/cifar10')
    group.add_argument('--val-split', default='validation', metavar='NAME', help='split to evaluate on')
    group.add_argument('--img-size', type=int, metavar='N', help='image size (default: the model\'s)')
    group.add_argument('--crop-pct', type=float, help='share of the image that evaluation crops')
    group.add_argument('--mean', type=float, nargs='+', help='mean of the pixels (default: the model\'s)')
    group.add_argument('--std', type=float, nargs='+', help='standard deviation of the pixels (default: the model\'s)')
    group.add_argument('--interpolation', default='', help='how images are resized (default: the model\'s)')
    group.add_argument('-b', '--batch-size', type=positive_int, default=128, metavar='N')
    group.add_argument('-j', '--workers', type=int, default=2, metavar='N', help='processes that load data')


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which network is built, and in which precision it runs."""
    group = parser.add_argument_group('model')
    group.add_argument('--model', default='dit_resnet20', metavar='NAME')
    group.add_argument('--pretrained', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--num-classes', type=int, metavar='N', help='default: the number of classes in the data')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE')
    group.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu, cuda, mps, ... (default: cuda where there is a GPU for it)',
    )
    group.add_argument('--channels-last', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--amp', action=argparse.BooleanOptionalAction, default=False, help='mixed precision')
    group.add_argument('--amp-dtype', default='bfloat16', choices=('bfloat16', 'float16'))


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Options of the optimisation."""
    group = parser.add_argument_group('optimisation')
    group.add_argument('--train-split', default='train', metavar='NAME')
    group.add_argument('--epochs', type=positive_int, default=300, metavar='N')
    group.add_argument('--opt', default='sgd')
    group.add_argument('--lr', type=float, default=0.1)
    group.add_argument('--momentum', type=float, default=0.9)
    group.add_argument('--weight-decay', type=float, default=2e-5)
    group.add_argument('--opt-eps', type=float)
    group.add_argument('--opt-betas', type=float, nargs='+')
    group.add_argument('--layer-decay', type=float)
    group.add_argument('--clip-grad', type=float, metavar='NORM')
    group.add_argument('--sched', default='cosine')
    group.add_argument('--warmup-epochs', type=int, default=5, metavar='N')
    group.add_argument('--warmup-lr', type=float, default=1e-5)
    group.add_argument('--min-lr', type=float, default=0.)
    group.add_argument('--decay-milestones', type=int, nargs='+', default=[90, 180, 270])
    group.add_argument('--decay-rate', type=float, default=0.1)
    group.add_argument('--drop', type=float, default=0.)
    group.add_argument('--drop-path', type=float)
    group.add_argument('--grad-checkpointing', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--seed', type=int, default=42)

    group = parser.add_argument_group('augmentation')
    group.add_argument('--no-aug', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--train-crop-mode')
    group.add_argument('--scale', type=float, nargs='+', default=[0.08, 1.0])
    group.add_argument('--ratio', type=float, nargs='+', default=[3 / 4, 4 / 3])
    group.add_argument('--hflip', type=float, default=0.5)
    group.add_argument('--vflip', type=float, default=0.)
    group.add_argument('--color-jitter', type=float, default=0.4)
    group.add_argument('--aa', metavar='POLICY', help='AutoAugment or RandAugment policy')
    group.add_argument('--reprob', type=float, default=0., help='probability of random erasing')
    group.add_argument('--remode', default='pixel')
    group.add_argument('--smoothing', type=float, default=0.1, help='label smoothing')
    group.add_argument('--train-interpolation', default='random')

    group = parser.add_argument_group('output')
    group.add_argument('--output', default='output/train', metavar='DIR')
    group.add_argument('--experiment', default='', metavar='NAME', help='subfolder (default: the time and the model)')


def parse(
        parser: argparse.ArgumentParser,
        argv: Optional[List[str]] = None,
        config: Optional[Path] = None,
) -> argparse.Namespace:
    """Parse a command line in front of which the options of a YAML file stand; the command line wins.

    Args:
        parser: A parser with `--config` and other options.
        argv: Command line; that of the process if None.
        config: The file when the command line names none.

    Returns:
        The options.
    """
    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument('-c', '--config', type=Path)
    path = first.parse_known_args(argv)[0].config or config
    # As words of a command line, so that the parser checks values from a file as it checks those typed.
    args = parser.parse_args([*(_words(parser, path) if path is not None else []), *argv])
    args.config = path
    return args


def _words(parser: argparse.ArgumentParser, path: Path) -> List[str]:
    """The options of a YAML file as words of a command line."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        parser.error(f'cannot read --config {path}: {error}')
    if not isinstance(values, dict):
        parser.error(f'--config {path} must map option names to values; it holds {values!r}.')
    actions = {action.dest: action for action in parser._actions if action.dest not in ('config', 'help')}
    words = []
    for key, value in values.items():
        key = key.replace('-', '_')
        if key not in actions:
            near = difflib.get_close_matches(key, actions, n=1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            parser.error(f'--config {path} sets {key!r}, which is no option.{hint}')
        name = f"--{key.replace('_', '-')}"
        if isinstance(actions[key], argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                parser.error(f'--config {path} sets {key!r} to {value!r}; it must be true or false.')
            words.append(name if value else f"--no-{key.replace('_', '-')}")
        elif isinstance(value, dict):
            words += [name, *(f'{inner}={content}' for inner, content in value.items())]
        elif isinstance(value, list):
            words += [name, *map(str, value)]
        elif value is not None:
            words.append(f'{name}={value}')
    return words


def positive_int(text: str) -> int:
    """An argparse type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1; got {text}')
    return value
