"""Put the weights of runs into the package: `python scripts/ship_weights.py RUN ... --tag TAG`.

Writes, for each run, dit_timm/weights/<model>.<tag>.safetensors and its line in SHA256SUMS beside it; an input and what
the network makes of it to tests/models/golden; and a row of hub/results/shipped.csv, the accuracy of the file as it is
shipped on the test split of the run. Weights with two or more dimensions are rounded to float16, hence the evaluation.

The tag then needs an entry in `default_cfgs` of its model.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import torch
import yaml
from torch import nn
from training.data import class_names, data_config, open_split
from training.engine import evaluate
from training.environment import environment
from training.loaders import eval_loader
from training.logs import read_csv, write_csv
from training.trained import classes_metadata, load_trained

from dit_timm.models.golden import make_golden
from dit_timm.models.weight_files import DamagedFile, load_weights, read_weights, weights_bytes, write_file

ROOT = Path(__file__).parent.parent
WEIGHTS, GOLDEN = ROOT / 'dit_timm' / 'weights', ROOT / 'tests' / 'models' / 'golden'
SHIPPED = ROOT / 'hub' / 'results' / 'shipped.csv'
# A test counts the right answers to every tenth image of the test split, whose images are sorted by class.
EVERY = 10


def main(argv: Optional[List[str]] = None) -> int:
    """Ship runs; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='folders that scripts/train.py wrote')
    parser.add_argument('--tag', required=True, help='names the data, such as cifar10_q75')
    parser.add_argument('--licence', default='apache-2.0', help='of the weights')
    args = parser.parse_args(argv)
    try:
        runs = {run: yaml.safe_load((run / 'args.yaml').read_text()) for run in args.runs}
        names = [options['model'] for options in runs.values()]
        if len({*names}) < len(names):
            raise ValueError(f'Name one run of a model; got {", ".join(names)}.')
        for run, options in runs.items():
            print(ship(run, options, args.tag, args.licence))
    except (OSError, ValueError, DamagedFile) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


def ship(run: Path, options: Mapping[str, Any], tag: str, licence: str) -> str:
    """Ship the weights of a run.

    Args:
        run: Its folder.
        options: Those that it was trained with.
        tag: The pretrained tag.
        licence: Of the weights.

    Returns:
        What was done, in a line.

    Raises:
        ValueError: They are of another network than the name stands for, or were not tested.
    """
    if options['model_kwargs']:
        raise ValueError(f'{run} is not {options["model"]} as it is, but with {options["model_kwargs"]}.')
    # In float32, as they are used unless somebody asks for less.
    args = argparse.Namespace(**{
        **options, 'checkpoint': run / 'model.safetensors', 'pretrained': False, 'amp': False,
    })
    if not args.test_split:
        raise ValueError(f'{run} has no test split to say how good the weights are; train with --test-split.')
    test_set = open_split(args, args.test_split)
    name = f'{args.model}.{tag}'
    weights = rounded(read_weights(args.checkpoint))
    metadata = {'model': args.model, 'tag': tag, 'licence': licence, **classes_metadata(class_names(test_set))}
    content = weights_bytes(weights, metadata)
    path = WEIGHTS / f'{name}.safetensors'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    _write_sums()
    model = load_trained(args)
    load_weights(model, read_weights(path), path)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    golden = make_golden(model, data_config(args, model)['input_size'])
    write_file(GOLDEN / path.name, weights_bytes(golden))
    _write_row(args, model, test_set, name, hashlib.sha256(content).hexdigest())
    return f'{path}: {len(content) / 1e6:.2f} MB'


def rounded(weights: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Weights in float16, but vectors and scalars: variances of batch norms may leave its range."""
    return {key: value.half() if value.ndim > 1 else value for key, value in weights.items()}


def _write_sums() -> None:
    lines = [
        f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n'
        for path in sorted(WEIGHTS.glob('*.safetensors'))
    ]
    write_file(WEIGHTS / 'SHA256SUMS', ''.join(lines).encode())


def _write_row(args: argparse.Namespace, model: nn.Module, test_set: Any, name: str, sha256: str) -> None:
    right: List[bool] = []
    config = data_config(args, model)
    loader = eval_loader(args, test_set, config)
    metrics = evaluate(model.to(args.device), loader, args, name, observe=lambda logits, targets: right.extend(
        (logits.argmax(1) == targets).tolist(),
    ))
    facts = environment(args.device)
    row = {
        'weights': name, 'sha256': sha256, 'split': args.test_split, 'images': len(right),
        **{key: round(value, 6) for key, value in metrics.items()},
        'right_of_every_tenth': sum(right[::EVERY]),
        **{key: facts[key] for key in ('device', 'torch', 'timm')},
    }
    kept = [other for other in read_csv(SHIPPED) if other['weights'] != name]
    write_csv(sorted([*kept, row], key=lambda row: row['weights']), SHIPPED)


if __name__ == '__main__':
    sys.exit(main())
