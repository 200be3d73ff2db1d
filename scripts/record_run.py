"""Write the results of runs into a CSV, a row for each: `python scripts/record_run.py RUN ... --data NAME`.

A run's result on its test split is taken from its results.csv, not evaluated again. A Dit network is evaluated once on
that split with its quadratic terms at zero: a row of its own, 'removed'. `recipe_sha256` is of the
recipe.yaml in the folder of the run.

The log of each run (a row for each epoch) is kept beside the CSV, in `logs`.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
import yaml

from dit_timm.analysis.ablation import quadratic_terms, remove_quadratic
from dit_timm.cli.printing import set_up_printing
from dit_timm.config.parts import DIT, PLAIN
from dit_timm.config.recipe import RECIPE, differences, sha256_of
from dit_timm.config.training import dit_network
from dit_timm.data.loaders import eval_loader
from dit_timm.data.splits import data_config, open_split
from dit_timm.errors import InvalidInputError, MissingFileError, UserError, message_of
from dit_timm.results.rows import REMOVED, add_rows
from dit_timm.training.engine import evaluate
from dit_timm.training.environment import environment
from dit_timm.training.logs import read_csv
from dit_timm.training.trained import load_trained, result_on_test

_FACTS = ('device', 'threads', 'torch', 'timm')
_FILES = ('args.yaml', 'summary.csv', 'results.csv', 'environment.csv', 'model.safetensors')
RESULTS = Path(__file__).parent.parent / 'hub' / 'results' / 'runs.csv'


def main(argv: Optional[List[str]] = None) -> int:
    """Record runs; returns the exit code."""
    set_up_printing()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='folders that scripts/train.py wrote')
    parser.add_argument('--data', required=True, metavar='NAME', help='what the data are called in tables')
    parser.add_argument('--tag', default='', help='pretrained tag of these weights, if they have one')
    parser.add_argument('--data-dir', metavar='DIR', help='where the data are now, if not where the run had them')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu',
        help='to evaluate on (default: cuda where there is a GPU for it)',
    )
    parser.add_argument('--csv', type=Path, default=RESULTS, metavar='FILE', help='default: hub/results/runs.csv')
    args = parser.parse_args(argv)
    try:
        for run in args.runs:
            rows = rows_of(run, args.data, args.tag, args.device, args.data_dir)
            add_rows(rows, args.csv)
            log = args.csv.parent / rows[0]['log']
            log.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / 'summary.csv', log)
            for row in rows:
                print(f'{run}: {row["variant"]}, top1 {row["top1"]} on {row["split"]}')
    except (UserError, OSError) as error:
        print(f'error: {message_of(error)}', file=sys.stderr)
        return 1
    return 0


def rows_of(run: Path, data: str, tag: str, device: str, data_dir: Optional[str] = None) -> List[Dict[str, Any]]:
    """The rows of a run.

    Args:
        run: Its folder.
        data: What the data are called.
        tag: The pretrained tag of the weights; empty if they have none.
        device: Where the network without its quadratic terms is evaluated.
        data_dir: Where the data are, if not where the run had them.

    Raises:
        OSError: The folder is not that of a run that has ended, or there are no data.
        InvalidInputError: It has no result on a test split, or no recipe.
        DamagedFileError: Its weights are damaged.
    """
    for name in _FILES:
        if not (run / name).is_file():
            raise MissingFileError(f'{run} is no folder of a run that has ended: it has no {name}.')
    if not (run / RECIPE).is_file():
        raise InvalidInputError(f'{run} has no {RECIPE}: it followed no recipe. Train with --config.')
    options = yaml.safe_load((run / 'args.yaml').read_text())
    result, starts = result_on_test(run), read_csv(run / 'environment.csv')
    args = argparse.Namespace(**{
        **options, 'checkpoint': run / 'model.safetensors', 'pretrained': False, 'device': device,
        'data_dir': data_dir or options['data_dir'],
    })
    model = load_trained(args)
    # Another number of processes makes other batches.
    processes = {'processes': starts[-1]['processes']} if starts[-1]['processes'] != '1' else {}
    row = {
        'run': run.name, 'model': dit_network(options['model']), 'variant': _variant(model, options), 'tag': tag,
        'data': data, **{name: result[name] for name in ('split', 'images')}, 'seed': options['seed'],
        'epochs': options['epochs'], **{name: result[name] for name in ('epoch', 'chosen')},
        'recipe': Path(options['config']).name,
        'recipe_sha256': sha256_of((run / RECIPE).read_text()),
        'options': differences(options, run / RECIPE, processes), 'images_sha256': starts[-1].get('images_sha256', ''),
        'precision': f'amp {options["amp_dtype"]}' if options['amp'] else 'float32',
        # Of a run that was stopped, each machine and version that it ran on.
        **{name: '; '.join(dict.fromkeys(start[name] for start in starts)) for name in _FACTS},
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        **{name: _rounded(result[name]) for name in ('top1', 'top5', 'loss')},
        'log': f'logs/{_slug(data)}-{Path(options["config"]).stem}-{run.name}.csv',
    }
    return [row, _removed(row, model, args)] if row['variant'] == DIT else [row]


def _removed(row: Dict[str, Any], model: torch.nn.Module, args: argparse.Namespace) -> Dict[str, Any]:
    """The row of a Dit network without its quadratic terms; takes them from the network."""
    remove_quadratic(model)
    loader = eval_loader(args, open_split(args, row['split']), data_config(args, model))
    metrics = evaluate(model, loader, args, f'{row["run"]}, A = 0')
    here = environment(args.device)
    return {
        **row, 'variant': REMOVED, 'tag': '', **{name: here[name] for name in _FACTS},
        **{name: _rounded(value) for name, value in metrics.items()},
    }


def _variant(model: torch.nn.Module, options: Dict[str, Any]) -> str:
    """The variant of the Dit network: a network of timm is the plain twin of that with its name."""
    return options['variant'] if options['variant'] != DIT or quadratic_terms(model) else PLAIN


def _slug(text: str) -> str:
    return re.sub(r'[^a-z0-9]+', '_', text.lower()).strip('_')


def _rounded(value: Any) -> float:
    return round(float(value), 6)


if __name__ == '__main__':
    sys.exit(main())
