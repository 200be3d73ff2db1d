"""What the folder of a run, as scripts/train.py writes it, says of its network."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import timm
import torch
import yaml
from timm.models import get_pretrained_cfg
from torch import nn

from dit_timm.config.parts import MLP
from dit_timm.config.recipe import RECIPE, sha256_of
from dit_timm.errors import DamagedFileError, InvalidInputError, MissingFileError
from dit_timm.pretrained.sources import folder_of, read_source
from dit_timm.pretrained.weight_files import read_weights
from dit_timm.training.checkpoint import list_checkpoints
from dit_timm.training.logs import read_csv
from dit_timm.training.trained import check_ended, classes_of, config_of_run, load_trained

# Which weights of a run: those that it kept, or those of its last checkpoint, averaged or not.
KEPT, AVERAGED, PLAIN = 'kept', 'ema', 'plain'
_IN_CHECKPOINT = {AVERAGED: 'ema.safetensors', PLAIN: 'model.safetensors'}
_COLUMNS = {
    'results.csv': {'split', 'images', 'chosen', 'top1', 'top5', 'loss'},
    'environment.csv': {'device', 'threads', 'torch', 'timm', 'processes'},
}


class FinishedRun(NamedTuple):
    """A run that has ended.

    Attributes:
        folder: Its folder.
        options: The options of scripts/train.py.
        results: Rows of results.csv, one for each split.
        environment: Rows of environment.csv, one for each start.
        classes: Names of the classes in order; None where the data have none.
    """
    folder: Path
    options: Dict[str, Any]
    results: List[Dict[str, str]]
    environment: List[Dict[str, str]]
    classes: Optional[List[str]]

    @property
    def base(self) -> Optional[timm.models.PretrainedCfg]:
        """Where the weights came from before the run; None for random ones."""
        if not self.options['pretrained']:
            return None
        name = self.options.get('pretrained_from')
        if name is None:
            return get_pretrained_cfg(self.options['model'])
        source = read_source(name)
        known = {field.name for field in dataclasses.fields(timm.models.PretrainedCfg)}
        cfg = {key: value for key, value in source.cfg.items() if key in known}
        repository = None if folder_of(name) else name.partition(':')[2].partition('@')[0]
        return timm.models.PretrainedCfg(**{**cfg, 'architecture': source.architecture, 'hf_hub_id': repository})

    @property
    def base_name(self) -> Optional[str]:
        """What the weights before the run are called: on the Hub, or else in timm's registry."""
        base = self.base
        return base and (base.hf_hub_id or '.'.join(filter(None, (base.architecture, base.tag))))

    @property
    def recipe(self) -> Optional[str]:
        """The name of the recipe that the run began with, if it had one."""
        return Path(self.options['config']).name if (self.folder / RECIPE).is_file() else None

    @property
    def recipe_sha256(self) -> Optional[str]:
        """SHA-256 of the options that the recipe set."""
        return sha256_of((self.folder / RECIPE).read_text()) if self.recipe else None


def read_run(folder: Path) -> FinishedRun:
    """Read a run's folder.

    Raises:
        MissingFileError: A file is missing: it is no run, or one that has not ended.
        DamagedFileError: The weights are damaged.
        InvalidInputError: A CSV says less than the card needs, or no registry has the network.
    """
    check_ended(folder)
    options = yaml.safe_load((folder / 'args.yaml').read_text())
    if options['variant'] == MLP:
        # Of all variants, the one that is no network of timm's registry.
        raise InvalidInputError(
            f'{folder} is of a control for experiments, --variant {MLP}: no registry can build it.'
        )
    read_weights(folder / 'model.safetensors')
    rows = {name: _rows(folder / name) for name in _COLUMNS}
    classes = classes_of(folder / 'model.safetensors')
    return FinishedRun(folder, options, rows['results.csv'], rows['environment.csv'], classes)


def load_model(run: FinishedRun, weights: str = KEPT) -> nn.Module:
    """Build the network of a run, with its weights.

    Args:
        run: The run.
        weights: 'kept' (what the run evaluated last), or of the last checkpoint 'ema' or 'plain'.

    Raises:
        DamagedFileError: They are damaged, or not the network's.
        MissingFileError: The run has no such weights.
    """
    # The file of a checkpoint has no args.yaml beside it.
    args = config_of_run(run.folder, device='cpu', channels_last=False, amp=False)
    return load_trained(replace(args, checkpoint=_weights_path(run.folder, weights)))


def _weights_path(folder: Path, weights: str) -> Path:
    if weights == KEPT:
        return folder / 'model.safetensors'
    name = _IN_CHECKPOINT[weights]
    paths = [checkpoint / name for checkpoint in list_checkpoints(folder)]
    if not paths or not paths[-1].is_file():
        raise MissingFileError(f'{folder} has no checkpoint with {name}; its kept weights are --weights {KEPT}.')
    return paths[-1]


def _rows(path: Path) -> List[Dict[str, str]]:
    rows, needed = read_csv(path), _COLUMNS[path.name]
    columns = list(rows[0]) if rows else []
    if not needed.issubset(columns):
        raise InvalidInputError(
            f'{path} is not what this version of scripts/train.py writes: {len(rows)} rows with the columns {columns}; '
            f'expected at least one with {sorted(needed)}.'
        )
    return rows


def check_finite(model: nn.Module) -> None:
    """Refuse weights that are not numbers.

    Raises:
        DamagedFileError: It names the first.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DamagedFileError(f'{name} is not finite: such weights are not published.')
