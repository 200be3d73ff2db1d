"""Networks named by their location, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`, as timm.create_model takes them."""

import json
import re
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ..errors import InvalidInputError, MissingFileError
from .hub_errors import TransportFailed, remedy

_CONFIG = 'config.json'
_PREFIXED = re.compile(r'(local-dir|hf[-_]hub):(.+)')
# Arguments in an export that repeat `input_size` and `num_classes` for timm.
_SAID_TWICE = ('num_classes', 'in_chans', 'img_size')


class Source(NamedTuple):
    """The config of the network in a folder or repository.

    Attributes:
        architecture: The name in timm's registry.
        cfg: timm's pretrained cfg.
        model_args: Arguments of `timm.create_model` that `cfg` does not have.
    """
    architecture: str
    cfg: Dict[str, Any]
    model_args: Dict[str, Any]


def folder_of(name: str) -> Optional[Path]:
    """The folder of a `local-dir:` name; None for other names."""
    match = _PREFIXED.fullmatch(name)
    return Path(match[2]) if match and match[1] == 'local-dir' else None


def is_source(name: str) -> bool:
    """Whether a name is `local-dir:...` or `hf-hub:...`."""
    return _PREFIXED.fullmatch(name) is not None


def public_name(name: str) -> str:
    """A name without the path of the folder on this machine."""
    folder = folder_of(name)
    return name if folder is None else f'local-dir:{folder.name}'


def read_source(name: str) -> Source:
    """Read the config of a network, from its folder or from the Hub.

    Raises:
        MissingFileError: There is no such folder, or no config in it.
        InvalidInputError: The Hub has no such repository or denies access, or the config is not one of timm's.
    """
    folder = folder_of(name)
    path = _download(name) if folder is None else folder / _CONFIG
    if not path.is_file():
        raise MissingFileError(
            f'{name}: there is no {path}. Such a folder holds {_CONFIG} and model.safetensors, as `python -m hub '
            f'export` or timm\'s save_for_hf writes them; weights of a run are named by --checkpoint.'
        )
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
        architecture, cfg = config['architecture'], config.get('pretrained_cfg', config)
        args = {key: value for key, value in config.get('model_args', {}).items() if key not in _SAID_TWICE}
        cfg = {**cfg, **{key: config[key] for key in ('num_classes', 'label_names') if key in config}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f'{name}: {_CONFIG} is not one of timm\'s models.') from error
    if not timm.is_model(architecture):
        raise InvalidInputError(
            f'{name} is a {architecture!r}, which neither timm {timm.__version__} nor this package has.'
        )
    return Source(architecture, cfg, args)


def _download(name: str) -> Path:
    repository, _, revision = name.partition(':')[2].partition('@')
    try:
        return Path(hf_hub_download(repository, _CONFIG, revision=revision or None))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, TransportFailed) as error:
        raise InvalidInputError(
            f'{name} is not in the cache, and the Hub cannot be reached: connect once.'
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = f'{str(error).strip().splitlines()[0]} {remedy(error) or ""}'.strip()
        raise InvalidInputError(f'{name}: {reason}') from error
