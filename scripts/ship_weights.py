"""Put the weights of runs into the package: `python scripts/ship_weights.py RUN ... --tag TAG`.

Writes, for each run, dit_timm/weights/<model>.<tag>.safetensors and its line in SHA256SUMS beside it; an input and the
network's outputs to tests/pretrained/golden; and a row of hub/results/shipped.csv: what scripts/validate.py
says of the file as it is shipped, on the test split of the run. Weights with two or more dimensions are rounded to
float16, hence another evaluation than the run's own.

The tag then needs an entry in `default_cfgs` of its model.
"""

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import torch
import yaml

from dit_timm.cli import validate
from dit_timm.data.splits import class_names, data_config, open_split
from dit_timm.errors import InvalidInputError, UserError, message_of
from dit_timm.files import write_file
from dit_timm.pretrained.golden import make_golden
from dit_timm.pretrained.weight_files import load_weights, read_weights, weights_bytes
from dit_timm.printing import set_up_printing
from dit_timm.training.environment import environment
from dit_timm.training.logs import read_csv, write_csv
from dit_timm.training.trained import classes_metadata, config_of_run, load_trained, result_on_test

ROOT = Path(__file__).parent.parent
# In a checkout.
WEIGHTS, GOLDEN = Path('dit_timm', 'weights'), Path('tests', 'pretrained', 'golden')
SHIPPED = Path('hub', 'results', 'shipped.csv')
# Of a run's options, those that say which images are its test split.
_DATA = ('data_dir', 'dataset', 'dataset_download', 'class_map', 'input_key', 'target_key')


def main(argv: Optional[List[str]] = None) -> int:
    """Ship runs; returns the exit code."""
    set_up_printing()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='folders that scripts/train.py wrote')
    parser.add_argument('--tag', required=True, help='names the data, such as cifar10')
    parser.add_argument('--data-dir', metavar='DIR', help='where the data are now, if not where the run had them')
    parser.add_argument('--license', default='apache-2.0', help='of the weights')
    args = parser.parse_args(argv)
    try:
        runs = {run: yaml.safe_load((run / 'args.yaml').read_text()) for run in args.runs}
        names = [options['model'] for options in runs.values()]
        if len({*names}) < len(names):
            raise InvalidInputError(f'Name one run of a model; got {", ".join(names)}.')
        for run, options in runs.items():
            options['data_dir'] = args.data_dir or options['data_dir']
            print(ship(run, options, args.tag, args.license, ROOT))
    except (UserError, OSError) as error:
        print(f'error: {message_of(error)}', file=sys.stderr)
        return 1
    return 0


def ship(run: Path, options: Mapping[str, Any], tag: str, license: str, root: Path) -> str:
    """Ship the weights of a run.

    Args:
        run: Its folder.
        options: Those that it was trained with.
        tag: The pretrained tag.
        license: Of the weights.
        root: The checkout.

    Returns:
        What was done, in a line.

    Raises:
        InvalidInputError: They are of another network than the name stands for, or were not tested.
    """
    if options['model_kwargs']:
        raise InvalidInputError(f'{run} is not {options["model"]} as it is, but with {options["model_kwargs"]}.')
    test_split = result_on_test(run)['split']
    # Golden outputs are computed in float64, on the CPU.
    args = config_of_run(run, amp=False, device='cpu', data_dir=options['data_dir'])
    name = f'{args.model}.{tag}'
    weights = rounded(read_weights(run / 'model.safetensors'))
    names = class_names(open_split(args, test_split))
    content = weights_bytes(weights, {'model': args.model, 'tag': tag, 'licence': license, **classes_metadata(names)})
    path = root / WEIGHTS / f'{name}.safetensors'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    _write_sums(path.parent)
    model = load_trained(args)
    load_weights(model, read_weights(path), path)
    golden = root / GOLDEN / path.name
    golden.parent.mkdir(parents=True, exist_ok=True)
    write_file(golden, weights_bytes(make_golden(model, data_config(args, model)['input_size'])))
    _write_row(root / SHIPPED, name, path, test_split, options)
    return f'{path}: {len(content) / 1e6:.2f} MB'


def rounded(weights: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Weights in float16, but vectors and scalars: variances of batch norms may leave its range."""
    return {key: value.half() if value.ndim > 1 else value for key, value in weights.items()}


def _write_sums(folder: Path) -> None:
    lines = [
        f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n'
        for path in sorted(folder.glob('*.safetensors'))
    ]
    write_file(folder / 'SHA256SUMS', ''.join(lines).encode())


def _write_row(csv: Path, name: str, path: Path, split: str, options: Mapping[str, Any]) -> None:
    """Evaluate a file of weights as validate.py does with its defaults, whatever the run's precision and batches."""
    args, = validate.parse_args(['--checkpoint', str(path)])
    result = validate.validate(replace(args, **{key: options[key] for key in _DATA}, val_split=split))
    facts = environment(args.device)
    row = {
        'weights': name, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
        **{key: result[key] for key in ('split', 'images', 'loss', 'top1', 'top5')},
        **{key: facts[key] for key in ('device', 'threads', 'torch', 'timm')},
    }
    kept = [other for other in read_csv(csv) if other['weights'] != name]
    write_csv(sorted([*kept, row], key=lambda row: row['weights']), csv)


if __name__ == '__main__':
    sys.exit(main())
