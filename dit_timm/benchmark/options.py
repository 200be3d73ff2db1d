"""The command line of scripts/benchmark.py."""

import argparse
import re
from pathlib import Path
from typing import List, Optional

import timm

from .. import available_backends
from ..config.choices import positive_int
from ..config.parts import default_device
from ..printing import near_names
from .checks import dtype_of
from .scaling import SERIES
from .shape import Shape

PARTS = ('op', 'model', 'scaling')
MIN_ROUNDS = 10


def parse_args(description: Optional[str], argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the command line.

    Beside the options, the result has `precision` and `model_precision`, keys of `checks.TOLERANCES`, and what `--only`
    names as `only_shapes`, `only_models` and `only_series`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', nargs='+', choices=PARTS, default=PARTS, help='default: all')
    parser.add_argument(
        '--only', nargs='+', metavar='NAME',
        help='measure these and nothing else: shapes PxCxO (op), Dit networks of timm\'s registry (model), '
             'pixels or channels (scaling)',
    )
    parser.add_argument(
        '--rounds', type=_rounds, default=15, metavar='N', help=f'rounds of the timing, at least {MIN_ROUNDS}',
    )
    parser.add_argument(
        '--memory', action=argparse.BooleanOptionalAction, default=True,
        help='measure memory too; on a CPU that takes a process of its own for each implementation, and only then does '
             'an implementation that runs out of memory leave the others alone',
    )
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write a row for each measurement')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='draw the part scaling, as a PNG')

    group = parser.add_argument_group('device')
    group.add_argument(
        '--device',
        default=default_device(),
        help='cpu or cuda (default: cuda where there is a GPU for it)',
    )
    group.add_argument('--threads', type=positive_int, metavar='N', help='CPU threads (default: torch\'s)')
    group.add_argument('--tf32', action='store_true', help='let a GPU round float32 operands to TF32')

    group = parser.add_argument_group('parts op and scaling')
    group.add_argument('--dtype', default='float32', choices=('float64', 'float32', 'bfloat16', 'float16'))
    group.add_argument(
        '--backends', nargs='*', metavar='NAME',
        help='time other backends too, in part op: these, or without a name every one that can run on the device',
    )

    parser.add_argument(
        '--busy', type=_count, nargs='+', default=[0], metavar='N',
        help='time beside N processes that keep the CPU busy, as those that load data do; `0 2`: without and beside '
             'two; part op',
    )

    group = parser.add_argument_group('part model')
    group.add_argument('--amp', choices=('bfloat16', 'float16'), help='mixed precision')
    group.add_argument('--torchcompile', action='store_true')
    group.add_argument('--channels-last', action='store_true')
    group.add_argument(
        '-b', '--batch-size', type=positive_int, metavar='N', help='default: 128, or 16 for large images on a CPU',
    )
    group.add_argument('--img-size', type=positive_int, metavar='N', help='default: the network\'s')

    args = parser.parse_args(argv)
    args.precision = _precision(args.dtype, args.tf32)
    args.model_precision = _precision(args.amp or 'float32', args.tf32)
    args.backends = _backends(parser, args)
    _split_only(parser, args)
    if args.plot is not None and 'scaling' not in args.part:
        parser.error('--plot draws the part scaling, which --part leaves out.')
    if any(args.busy) and list(args.part) != ['op']:
        parser.error(f'--busy is for part op alone; got {", ".join(args.part)}. Add --part op.')
    return args


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f'must be 0 or more; got {text}.')
    return count


def _precision(dtype: str, tf32: bool) -> str:
    return f'{dtype} (tf32)' if tf32 and dtype == 'float32' else dtype


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < MIN_ROUNDS:
        raise argparse.ArgumentTypeError(
            f'must be at least {MIN_ROUNDS}, for a median of fewer says little; got {text}. '
            f'For a quick try choose small sizes with --only and --no-memory.'
        )
    return rounds


def _backends(parser: argparse.ArgumentParser, args: argparse.Namespace) -> List[str]:
    if args.backends is None:
        return []
    usable = available_backends(args.device, dtype_of(args.precision))
    for name in args.backends:
        if name not in usable:
            parser.error(
                f'--backends {name} cannot run on {args.device} with {args.dtype}; these can: {", ".join(usable)}.'
            )
    # Also the preferred one if it is named: the automatic choice may be another for small forms.
    return args.backends or list(usable[1:])


def _split_only(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Sort the names of `--only` into the parts, and drop the parts of which nothing is named."""
    args.only_shapes, args.only_models, args.only_series = [], [], []
    if args.only is None:
        return
    for name in args.only:
        if re.fullmatch(r'[1-9]\d*x[1-9]\d*x[1-9]\d*', name):
            args.only_shapes.append(Shape.parse(name))
        elif name in SERIES:
            args.only_series.append(name)
        elif 'dit_' in name and timm.is_model(name):
            args.only_models.append(name)
        else:
            parser.error(
                f'--only {name} is neither a shape PxCxO nor a Dit network nor a series. '
                f'{near_names(name, [*timm.list_models("*dit_*"), *SERIES])}'
            )
    named = dict(zip(PARTS, (args.only_shapes, args.only_models, args.only_series)))
    args.part = [part for part in args.part if named[part]]
    if not args.part:
        parser.error(f'--only {" ".join(args.only)} names nothing of the parts asked for.')
