"""Export: a folder that holds what a repository on the Hub will."""

import inspect
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional

import timm
import yaml
from torch import nn

from dit_timm import __version__
from dit_timm.data.inputs import input_config, options_metadata
from dit_timm.errors import DamagedFileError, InvalidInputError, MissingPackageError
from dit_timm.files import write_file
from dit_timm.models._timm_private import save_for_hf
from dit_timm.pretrained.golden import TOLERANCE, golden_difference, make_golden
from dit_timm.pretrained.sources import public_name
from dit_timm.pretrained.weight_files import digest, weights_bytes
from dit_timm.training.trained import classes_metadata

from .run import KEPT, FinishedRun, check_finite, load_model

WEIGHTS, CONFIG, GOLDEN, CARD = 'model.safetensors', 'config.json', 'golden.safetensors', 'README.md'
# What is written by hand, and becomes part of the card.
NOTES = 'NOTES.md'
OPTIONS = 'args.yaml'
# Options that name places on the machine of the run.
_PRIVATE = ('data_dir', 'output', 'experiment', 'device', 'class_map')


class LicenseError(InvalidInputError):
    """The licence of the weights is missing, or another than they came with."""


def export(run: FinishedRun, out: Path, tag: str, license: Optional[str] = None, weights: str = KEPT) -> Path:
    """Write weights, config, options and golden outputs of a run; the card comes from `card.write_card`.

    Args:
        run: The run.
        out: The folder; files of an earlier export are replaced.
        tag: What the weights are called, after the model's name: says the data.
        license: Of the weights. Not needed, and not to be changed, where the run began with weights that have one.
        weights: See `load_model`.

    Raises:
        LicenseError: See there.
        InvalidInputError: `out` is a file, or the folder of a run.
        DamagedFileError: The weights are damaged, not finite, or do not give the same outputs twice.
        OSError: A file cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InvalidInputError(f'{out} is a file; name a folder.')
    if (out / 'summary.csv').exists():
        raise InvalidInputError(
            f'{out} is the folder of a run, whose files would be written over; name another folder.'
        )
    license = license_of(run, license)
    model = load_model(run, weights)
    check_finite(model)
    config = input_config(run.options, model)
    golden = make_golden(model, config['input_size'])
    if golden_difference(model, golden) > TOLERANCE:
        raise DamagedFileError(f'{run.folder}: float32 outputs differ from those in float64 by more than {TOLERANCE}.')
    out.mkdir(parents=True, exist_ok=True)
    metadata = {
        'format': 'pt', 'model': run.options['model'], 'tag': tag, 'license': license, 'dit_timm': __version__,
        'weights': weights, 'golden_sha256': digest(golden),
    }
    metadata.update(options_metadata(run.options))
    metadata.update(classes_metadata(run.classes))
    if run.recipe is not None:
        metadata.update(recipe=run.recipe, recipe_sha256=run.recipe_sha256)
    write_file(out / WEIGHTS, weights_bytes(model.state_dict(), metadata))
    write_file(out / GOLDEN, weights_bytes(golden))
    options = {key: value for key, value in run.options.items() if key not in _PRIVATE}
    options['config'] = run.recipe
    if options.get('pretrained_from'):
        options['pretrained_from'] = public_name(options['pretrained_from'])
    write_file(out / OPTIONS, yaml.safe_dump(options).encode())
    text = json.dumps(_config(run, model, config, tag, license), indent=2) + '\n'
    write_file(out / CONFIG, text.encode())
    return out


def license_of(run: FinishedRun, license: Optional[str]) -> str:
    """The licence of a run's weights: that of the weights it began with, else the one given.

    Raises:
        LicenseError: There is none, or it is to be another.
    """
    base = run.base.license if run.base is not None else None
    if base and license and license != base:
        raise LicenseError(
            f'The run began with weights of {run.base_name}, licence {base}: they stay under it; got --license '
            f'{license}.'
        )
    if not base and not license:
        raise LicenseError('The weights have no licence yet: name one with --license, such as apache-2.0.')
    return base or license


def _config(run: FinishedRun, model: nn.Module, config: Dict[str, Any], tag: str, license: str) -> Dict[str, Any]:
    """config.json in timm's format."""
    if 'data_config' not in inspect.signature(save_for_hf).parameters:
        raise MissingPackageError(
            f'The export needs timm 1.0.31 or later, which writes how images are prepared; this is {timm.__version__}.'
        )
    names = {'label_names': run.classes} if run.classes else {}
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(model, folder, model_config=names, safe_serialization=True, data_config=config)
        written = json.loads((Path(folder) / CONFIG).read_text())
    # It stands at the top already; transformers passes it twice otherwise.
    written.get('model_args', {}).pop('num_classes', None)
    # What the network's own pretrained weights tell apart is not what these do.
    # A name of the file would be read as that of a pickle by timm before 1.0.29; without, safetensors come first.
    for key in ('label_names', 'label_descriptions', 'hf_hub_filename'):
        written['pretrained_cfg'].pop(key, None)
    written['pretrained_cfg'].update(names, tag=tag, license=license)
    return written
