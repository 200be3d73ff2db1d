"""Write the results of runs into a CSV, a row for each: `python scripts/record_run.py RUN ... --data NAME`.

A run's own test split is read from its results.csv, not evaluated again. A Dit network is evaluated once more on that
split with its quadratic terms at zero: a row of its own, 'Dit, A = 0 after training'.

The log of each run (a row for each epoch) is kept beside the CSV, in `logs`.
"""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
import train
import yaml
from training.data import data_config, open_split
from training.engine import evaluate
from training.loaders import eval_loader
from training.logs import read_csv
from training.trained import load_trained
from zoo.rows import DIT, FIXED, PLAIN, REMOVED, TRANSPOSED, add_rows

from dit_timm.models.ablation import remove_quadratic
from dit_timm.models.weight_files import DamagedFile

_FACTS = ('device', 'threads', 'torch', 'timm')
RESULTS = Path(__file__).parent.parent / 'hub' / 'results' / 'runs.csv'
# Options that say where and with what a run is done, not what is trained.
_SILENT = (
    'config', 'data_dir', 'output', 'experiment', 'workers', 'checkpoint_interval', 'log_tensorboard', 'log_wandb',
    'resume', 'dry_run', 'device', 'num_classes', 'seed', 'test_split', 'model',
)
# Options that make a variant; its name says enough.
_FIXES_ZERO = ['^(?!.*quadratic)']
_OF_VARIANTS = ('quadratic', 'transposed_quadratic')


def main(argv: Optional[List[str]] = None) -> int:
    """Record runs; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='folders that scripts/train.py wrote')
    parser.add_argument('--data', required=True, metavar='NAME', help='what the data are called in tables')
    parser.add_argument('--tag', default='', help='pretrained tag of these weights, if they have one')
    parser.add_argument('--csv', type=Path, default=RESULTS, metavar='FILE', help='default: hub/results/runs.csv')
    args = parser.parse_args(argv)
    try:
        for run in args.runs:
            rows = rows_of(run, args.data, args.tag)
            add_rows(rows, args.csv)
            log = args.csv.parent / rows[0]['log']
            log.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / 'summary.csv', log)
            for row in rows:
                print(f'{run}: {row["variant"]}, top1 {row["top1"]} on {row["split"]}')
    except (OSError, ValueError, DamagedFile) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


def rows_of(run: Path, data: str, tag: str) -> List[Dict[str, Any]]:
    """The rows of a run.

    Raises:
        OSError: The folder is not that of a run that has ended.
        ValueError: Its results are not of a test split, or it has no recipe.
        DamagedFile: Its weights are damaged.
    """
    for name in ('args.yaml', 'summary.csv', 'results.csv', 'environment.csv', 'model.safetensors'):
        if not (run / name).is_file():
            raise FileNotFoundError(f'{run} is no folder of a run that has ended: it has no {name}.')
    options = yaml.safe_load((run / 'args.yaml').read_text())
    result = read_csv(run / 'results.csv')[-1]
    starts = read_csv(run / 'environment.csv')
    if not options['test_split'] or result['split'] != options['test_split']:
        raise ValueError(f'{run} has no result on a test split; train with --test-split.')
    args = argparse.Namespace(**{**options, 'checkpoint': run / 'model.safetensors', 'pretrained': False})
    model = load_trained(args)
    variant = _variant(model, options)
    recipe, differences = _recipe(options)
    test_set = open_split(args, args.test_split)
    row = {
        'run': run.name, 'model': options['model'], 'variant': variant, 'tag': tag, 'data': data,
        'split': result['split'], 'images': len(test_set), 'seed': options['seed'], 'epochs': options['epochs'],
        'epoch': result['epoch'], 'chosen': result['chosen'], 'recipe': recipe.name,
        'recipe_sha256': hashlib.sha256(recipe.read_bytes()).hexdigest(), 'options': differences,
        'precision': f'amp {options["amp_dtype"]}' if options['amp'] else 'float32',
        # Of a run that was stopped, each machine and version that it ran on.
        **{name: '; '.join(dict.fromkeys(start[name] for start in starts)) for name in _FACTS},
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        **{name: _rounded(result[name]) for name in ('top1', 'top5', 'loss')},
        'train_seconds': round(sum(float(line['seconds']) for line in read_csv(run / 'summary.csv'))),
        'log': f'logs/{run.name}.csv',
    }
    if variant not in (DIT, TRANSPOSED):
        return [row]
    remove_quadratic(model)
    metrics = evaluate(model, eval_loader(args, test_set, data_config(args, model)), args, f'{run.name}, A = 0')
    removed = {**row, 'variant': REMOVED, 'tag': '', **{name: _rounded(value) for name, value in metrics.items()}}
    return [row, removed] if variant == DIT else [row]


def _variant(model: torch.nn.Module, options: Dict[str, Any]) -> str:
    weights = [weight for name, weight in model.named_parameters() if name.endswith('quadratic.weight')]
    if not weights:
        return PLAIN
    if options['model_kwargs'].get('transposed_quadratic'):
        return TRANSPOSED
    return DIT if any(weight.any() for weight in weights) else FIXED


def _recipe(options: Dict[str, Any]) -> Tuple[Path, str]:
    """The recipe of a run, and the options in which the run differs from it."""
    if not options['config']:
        raise ValueError('The run has no recipe: train with --config.')
    recipe = Path(options['config'])
    if not recipe.is_file():
        recipe = Path(__file__).parent / 'recipes' / recipe.name
    args = vars(train.parse_args(['--config', str(recipe)]))
    ours, theirs = (_without_variants(values) for values in (options, args))
    changed = {
        key: value for key, value in ours.items() if key not in _SILENT and key in theirs and theirs[key] != value
    }
    return recipe, ' '.join(f'{key}={value}' for key, value in sorted(changed.items()))


def _without_variants(options: Dict[str, Any]) -> Dict[str, Any]:
    kwargs = {key: value for key, value in options['model_kwargs'].items() if key not in _OF_VARIANTS}
    train_only = None if options['train_only'] == _FIXES_ZERO else options['train_only']
    return {**options, 'model_kwargs': kwargs, 'train_only': train_only}


def _rounded(value: Any) -> float:
    return round(float(value), 6)


if __name__ == '__main__':
    sys.exit(main())
