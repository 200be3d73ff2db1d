"""Runs as rows of a CSV: what was trained, on what, and what it gives on its test split."""

import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional

import yaml
from torch import nn

from ..analysis.ablation import quadratic_terms, remove_quadratic
from ..config.parts import DIT, PLAIN, EvaluatedConfig
from ..config.recipe import RECIPE, differences, sha256_of
from ..config.training import dit_network
from ..data.loaders import eval_loader
from ..data.splits import data_config, open_split
from ..errors import InvalidInputError
from ..models.network import Network
from ..training.engine import evaluate
from ..training.environment import environment
from ..training.logs import read_csv
from ..training.trained import check_ended, config_of_run, load_trained, result_on_test
from .rows import REMOVED, add_rows, slug

_FACTS = ('device', 'threads', 'torch', 'timm')


def record(run: Path, rows: List[Dict[str, Any]], csv: Path) -> None:
    """Put the rows of a run into a CSV, and its log beside it.

    Args:
        run: Its folder.
        rows: See `rows_of`.
        csv: The CSV; it need not exist.

    Raises:
        InvalidInputError: The CSV has another run whose log has the same name, or is no CSV of runs.
        OSError: It cannot be written.
    """
    add_rows(rows, csv)
    log = csv.parent / rows[0]['log']
    log.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / 'summary.csv', log)


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
    check_ended(run)
    if not (run / RECIPE).is_file():
        raise InvalidInputError(f'{run} has no {RECIPE}: it followed no recipe. Train with --config.')
    options = yaml.safe_load((run / 'args.yaml').read_text())
    result, starts = result_on_test(run), read_csv(run / 'environment.csv')
    args = config_of_run(run, device=device, **({'data_dir': data_dir} if data_dir else {}))
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
        'log': f'logs/{slug(data)}-{Path(options["config"]).stem}-{run.name}.csv',
    }
    return [row, _removed(row, model, args)] if row['variant'] == DIT else [row]


def _removed(row: Dict[str, Any], model: Network, args: EvaluatedConfig) -> Dict[str, Any]:
    """The row of a Dit network without its quadratic terms; takes them from the network."""
    remove_quadratic(model)
    loader = eval_loader(args, open_split(args, row['split']), data_config(args, model))
    metrics = evaluate(model, loader, args, f'{row["run"]}, A = 0')
    here = environment(args.device)
    return {
        **row, 'variant': REMOVED, 'tag': '', **{name: here[name] for name in _FACTS},
        **{name: _rounded(value) for name, value in metrics.items()},
    }


def _variant(model: nn.Module, options: Dict[str, Any]) -> str:
    """The variant of the Dit network: a network of timm is the plain twin of that with its name."""
    return options['variant'] if options['variant'] != DIT or quadratic_terms(model) else PLAIN


def _rounded(value: Any) -> float:
    return round(float(value), 6)
