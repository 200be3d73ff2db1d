"""Evaluate checkpoints, or pretrained weights.

`python scripts/validate.py --checkpoint RUN` evaluates what scripts/train.py wrote with the options in RUN/args.yaml:
the same data, precision and batch size, and hence the numbers of the last row of its results.csv: on the test split,
else on the images held out, else on the validation split. Options override them. Several runs, or several pretrained
models (`--pretrained --model 'dit_resnet*'`), are evaluated one after the other.

ImageNet and its variants: `--valid-labels imagenet_a` or `imagenet_r` for ImageNet-A and -R, `--real-labels` for ReaL;
ImageNet-V2 and -Sketch need a folder named by `--data-dir` and nothing else.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, cast

import timm
from timm.data import RealLabelsImagenet
from timm.layers import apply_test_time_pool
from timm.utils import setup_default_logging

from ..analysis.ablation import remove_quadratic
from ..config.options import Parser, option
from ..config.parts import EvaluatedConfig
from ..data.dataset import readable
from ..data.labels import SomeClasses, read_valid_labels
from ..data.loaders import eval_loader
from ..data.splits import class_names, data_config, evaluated_name, open_evaluated
from ..errors import InvalidInputError, UserError, message_of
from ..models.network import Network
from ..pretrained.sources import is_source
from ..printing import first_of, set_up_printing
from ..training.confusion import Confusion
from ..training.engine import evaluate, summary_line
from ..training.logs import write_csv
from ..training.model import check_model
from ..training.trained import known_classes, load_trained, parse_with_run


@dataclass(kw_only=True)
class ValidationConfig(EvaluatedConfig):
    """The options of an evaluation."""

    checkpoint: Optional[Path] = option(
        None, 'a run\'s folder, or weights: safetensors, or a checkpoint of timm\'s train.py; several are evaluated '
              'one after the other', metavar='FILE', several=True,
    )
    results_file: Optional[Path] = option(
        None, 'write CSV rows as timm\'s validate.py does, in place of what was there', metavar='FILE',
    )
    per_class: Optional[Path] = option(None, 'write a CSV row for each class', metavar='FILE')
    confusion: Optional[Path] = option(None, 'draw the confusion matrix, as a PNG', metavar='FILE')
    valid_labels: Optional[str] = option(
        None, 'classes of the network that the data have, by number, a line each; or imagenet_a, imagenet_r',
        metavar='FILE',
    )
    real_labels: Optional[str] = option(
        None, 'judge top-1 and top-5 by ImageNet\'s ReaL labels: timm\'s, or those of a JSON file', metavar='FILE',
        nargs='?', const='',
    )
    without_quadratic: bool = option(False, 'with the quadratic terms at zero, to see what they are worth')
    use_train_size: bool = option(
        False, 'the size and crop of training, where pretrained weights have others for tests',
    )
    test_pool: bool = option(False, 'pool at test time over larger images')
    model: str = option(
        'dit_resnet20', 'name, pattern of names with pretrained weights, local-dir:FOLDER or hf-hub:OWNER/NAME; '
                        'several are evaluated one after the other', metavar='NAME', several=True,
    )


def parse_args(argv: Optional[List[str]] = None) -> List[ValidationConfig]:
    """Parse the command line; returns the options of each network, above those of the run that wrote it."""
    parser = Parser(ValidationConfig, __doc__)
    given = parser.given(argv)
    checkpoints, models = given.pop('checkpoint', []), given.pop('model', [])
    if not checkpoints:
        names = [name for pattern in models or [ValidationConfig.model] for name in _names(parser, pattern)]
        return [parse_with_run(parser, {**given, 'model': name}) for name in names]
    if len(models) > 1:
        parser.error(f'--model must name one network, that of --checkpoint; got {" ".join(models)}.')
    if len(checkpoints) > 1 and ('per_class' in given or 'confusion' in given):
        parser.error('--per-class and --confusion write one file, of one network.')
    own = {'model': models[0]} if models else {}
    return [parse_with_run(parser, {**given, **own, 'checkpoint': checkpoint}) for checkpoint in checkpoints]


def _names(parser: Parser, pattern: str) -> List[str]:
    if is_source(pattern) or not any(character in pattern for character in '*?['):
        return [pattern]
    names = timm.list_pretrained(pattern)
    if not names:
        parser.error(f'--model {pattern} fits no network with pretrained weights.')
    return names


def validate(args: ValidationConfig) -> Dict[str, Any]:
    """Evaluate one network, and write what the options ask for; returns its row of results, as timm's."""
    check_model(args)
    dataset, indices = open_evaluated(args)
    if args.skip_bad_images:
        indices, bad = readable(dataset, indices, args.workers)
        print(f'images that cannot be read and are left out: {len(bad)}')
    classes = class_names(dataset)
    valid = read_valid_labels(args.valid_labels) if args.valid_labels else None
    model = load_trained(args)
    if classes is not None and valid is None and not args.class_map:
        _check_names(args, known_classes(args, model), classes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = data_config(args, model, use_test_size=args.checkpoint is None and not args.use_train_size)
    if args.without_quadratic:
        remove_quadratic(model)
    if args.test_pool:
        # timm's head takes the classifier of the network, and does not say how many classes it has.
        known = model.num_classes
        model, pools = cast(Tuple[Network, bool], apply_test_time_pool(model, config))
        model.num_classes = known
        if pools:
            config['crop_pct'] = 1.
    if valid is not None:
        model = SomeClasses(model, valid)
    # Of a pretrained network, and by --valid-labels, there may be more classes than the data have.
    more_may_be = args.checkpoint is None or valid is not None
    known = model.num_classes
    if classes is not None and (known < len(classes) or known > len(classes) and not more_may_be):
        raise InvalidInputError(f'{args.model} has {known} classes, but the data have {len(classes)}.')
    confusion = Confusion(known)
    real = _real_labels(args, dataset)

    def observe(logits, targets):
        confusion.update(logits, targets)
        if real is not None:
            real.add_result(logits)

    metrics = evaluate(model, eval_loader(args, dataset, config, indices), args, args.model, observe=observe)
    if real is not None:
        # timm's annotation is for one number too, which `k` asks for.
        accuracy = cast(Dict[int, float], real.get_accuracy())
        metrics.update(top1=accuracy[1], top5=accuracy[5])
    if args.per_class is not None:
        write_csv(confusion.per_class(classes), args.per_class)
    if args.confusion is not None:
        confusion.plot(classes, args.confusion)
    labels = '' if real is None else '; top1 and top5 by ReaL labels'
    images = int(confusion.counts.sum())
    print(f'{evaluated_name(args)}: {images:,} images, loss {metrics["loss"]:.4f}{labels}')
    weights = str(args.checkpoint or 'pretrained') + ', quadratic terms zero' * args.without_quadratic
    print(summary_line(metrics, args.model, weights), flush=True)
    top1, top5 = round(metrics['top1'], 4), round(metrics['top5'], 4)
    return {
        'model': args.model, 'top1': top1, 'top1_err': round(100 - top1, 4), 'top5': top5,
        'top5_err': round(100 - top5, 4), 'param_count': round(parameters / 1e6, 2),
        'img_size': config['input_size'][-1], 'crop_pct': config['crop_pct'],
        'interpolation': config['interpolation'], 'split': evaluated_name(args), 'images': images,
        'loss': round(metrics['loss'], 4), 'weights': weights,
    }


def _check_names(args: ValidationConfig, known: Optional[List[str]], classes: List[str]) -> None:
    """Refuse data whose classes are others than those that the network was trained on."""
    if known is not None and known != classes:
        data = f'{args.data_dir} has' if args.data_dir else 'the handwritten digits, taken for want of --data-dir, have'
        raise InvalidInputError(
            f'{args.model} knows the classes {first_of(known)}, but {data} {first_of(classes)}. If they are the same '
            f'under other names, --class-map says which is which.'
        )


def _real_labels(args: ValidationConfig, dataset: Any) -> Optional[RealLabelsImagenet]:
    if args.real_labels is None:
        return None
    if args.skip_bad_images or args.val_fraction:
        raise InvalidInputError('--real-labels goes by the number of each image: none can be left out.')
    try:
        return RealLabelsImagenet(dataset.filenames(basename=True), real_json=args.real_labels or None)
    except json.JSONDecodeError as error:
        raise InvalidInputError(f'--real-labels {args.real_labels} is no JSON: {error}') from error
    except AssertionError as error:
        raise InvalidInputError(
            f'--real-labels are of the 50,000 images of ImageNet\'s validation split; {args.data_dir} has '
            f'{len(dataset):,} in {args.val_split!r}.'
        ) from error


def main(argv: Optional[List[str]] = None) -> int:
    """Evaluate and print; returns the exit code, 1 if a network could not be evaluated."""
    set_up_printing()
    setup_default_logging()
    rows, failed = [], 0
    for args in parse_args(argv):
        try:
            rows.append(validate(args))
        except (UserError, OSError) as error:
            failed += 1
            name, message = str(args.checkpoint or args.model), message_of(error)
            print(f'error: {message if name in message else f"{name}: {message}"}', file=sys.stderr)
            continue
        if args.results_file is not None:
            # After each, so that what was evaluated is there whatever the next one does.
            write_csv(rows, args.results_file)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
