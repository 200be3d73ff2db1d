"""Loading pretrained weights only after their SHA-256 was verified.

timm and the Hub's client compare sizes when they download and nothing when they load, so an altered file in the cache
loads without a message. Here the checksum is verified first, and the network is loaded strictly from that file.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from timm.models import get_pretrained_cfg
from torch import nn

from ..errors import DamagedFileError, InvalidInputError, UnavailableError
from ..printing import near_names
from .hub_errors import TransportFailed, remedy

_WEIGHTS, _CONFIG = 'model.safetensors', 'config.json'
_SUMS = 'SHA256SUMS'
_SHA256 = re.compile(r'[0-9a-f]{64}')
# By which the Hub stores small files.
_BLOB_ID = re.compile(r'[0-9a-f]{40}')


class NoWeightsError(UnavailableError):
    """Pretrained weights are not available; the message names the repository and what to do."""


class _Source(NamedTuple):
    """Weights that were found, and may be loaded once their checksum is verified."""
    path: Path
    name: str
    expected: Optional[str]


def load_pretrained_checked(
        name: str, revision: Optional[str] = None, sha256: Optional[str] = None, cache_dir: Optional[str] = None,
        **kwargs: Any,
) -> nn.Module:
    """`timm.create_model(name, pretrained=True)`, from weights whose SHA-256 is compared before they are loaded.

    The sum is that of the argument, else that of the list in this package (weights that it ships), else that by which
    the Hub stores the file. Without network, the latter is the name under which the client's cache keeps it.

    Args:
        name: A name of timm's registry (`'dit_resnet50'`, `'dit_resnet50.a1_in1k_init'`), or a repository on the Hub
            (`'owner/name'`, with or without `hf-hub:` in front).
        revision: Branch, tag or commit of the repository.
        sha256: Sum that the weights must have, 64 hexadecimal digits.
        cache_dir: The client's cache, if it is not the usual one.
        **kwargs: More arguments of `timm.create_model`.

    Returns:
        The network, in evaluation mode.

    Raises:
        NoWeightsError: There is no such name, repository, revision or file, or no access to it, or no network.
        DamagedFileError: The weights have another sum than they must, or do not fit the network.
        InvalidInputError: An argument makes no sense.
    """
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise InvalidInputError(f'sha256 must be 64 hexadecimal digits, in lower case; got {sha256!r}.')
    repository = name.removeprefix('hf-hub:')
    if '/' in repository:
        return _from_repository(repository, revision, sha256, cache_dir, kwargs)
    if revision is not None:
        raise InvalidInputError(f'revision is of a repository; {name!r} is a name of timm\'s registry.')
    return _from_registry(name, sha256, cache_dir, kwargs)


def _from_registry(name: str, sha256: Optional[str], cache_dir: Optional[str], kwargs: Dict[str, Any]) -> nn.Module:
    try:
        cfg = get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:
        # What timm raises for a tag that the model does not have.
        cfg = None
    if cfg is not None and cfg.file:
        source = _Source(Path(cfg.file), name, sha256 or _shipped_sum(Path(cfg.file)))
    elif cfg is not None and cfg.hf_hub_id:
        repository, _, revision = cfg.hf_hub_id.partition('@')
        source = _download(repository, revision or None, cfg.hf_hub_filename or _WEIGHTS, sha256, cache_dir)
    else:
        raise NoWeightsError(
            f'{name} has no pretrained weights in timm\'s registry. {near_names(name, timm.list_pretrained())} '
            f'timm.list_pretrained(\'dit_*\') lists all.'
        )
    _compare(source)
    overlay = {**(kwargs.pop('pretrained_cfg_overlay', None) or {}), 'file': str(source.path)}
    return _create(name, source, pretrained_cfg_overlay=overlay, **kwargs)


def _from_repository(
        name: str, revision: Optional[str], sha256: Optional[str], cache_dir: Optional[str], kwargs: Dict[str, Any],
) -> nn.Module:
    repository, _, pinned = name.partition('@')
    if revision is not None and pinned:
        raise InvalidInputError(f'Name the revision once: {name!r} has one, and revision={revision!r}.')
    revision = revision or pinned or None
    config = _download(repository, revision, _CONFIG, None, cache_dir)
    _compare(config)
    try:
        architecture = json.loads(config.path.read_text())['architecture']
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f'{config.name}: {_CONFIG} is not one of timm\'s models.') from error
    if not timm.is_model(architecture):
        raise NoWeightsError(
            f'{config.name} is a {architecture!r}, which neither timm {timm.__version__} nor this package knows: a '
            f'newer version may.'
        )
    # The commit of the config, so that no other commit comes in between: the cache keeps files under its commit.
    commit = config.path.parent.name
    weights = _download(repository, commit, _WEIGHTS, sha256, cache_dir)
    _compare(weights)
    return _create(f'local-dir:{weights.path.parent}', weights, **kwargs)


def _create(name: str, source: _Source, **kwargs: Any) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, **kwargs).eval()
    except (RuntimeError, KeyError) as error:
        raise DamagedFileError(f'{source.name} does not fit the network: {error}') from error


def _shipped_sum(path: Path) -> Optional[str]:
    sums = path.with_name(_SUMS)
    if not sums.is_file():
        return None
    lines = (line.split() for line in sums.read_text().splitlines())
    return {name: sha256 for sha256, name in lines}.get(path.name)


def _download(
        repository: str, revision: Optional[str], filename: str, sha256: Optional[str], cache_dir: Optional[str],
) -> _Source:
    name = f'{repository}@{revision}' if revision else repository
    try:
        path = Path(hf_hub_download(repository, filename, revision=revision, cache_dir=cache_dir))
    except (HfHubHTTPError, EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise NoWeightsError(f'{name}: {_reason(error, filename)}') from error
    except HFValidationError as error:
        raise NoWeightsError(
            f'{name} is neither a name of timm\'s registry nor a repository, OWNER/NAME: {error} A folder of timm\'s '
            f'format loads with timm.create_model(\'local-dir:FOLDER\', pretrained=True).'
        ) from error
    except (TransportFailed, ValueError) as error:
        # A broken connection, and what the client raises for what it does not support.
        raise NoWeightsError(f'{name}: {filename} could not be downloaded: {error}. Try again.') from error
    stored = os.path.basename(os.path.realpath(path))
    known = _SHA256.fullmatch(stored) or _BLOB_ID.fullmatch(stored)
    return _Source(path, f'{name}, {filename}', sha256 or (stored if known else None))


def _reason(error: Exception, filename: str) -> str:
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return (
            f'{filename} is not in the cache, and the Hub cannot be reached. Connect once, after which the cached file '
            f'is used offline too, or copy the cache of a machine that has it.'
        )
    if isinstance(error, EntryNotFoundError):
        return f'The repository has no {filename}: it is no model of timm\'s, or has its weights as a pickle only.'
    return f'No {filename} ({str(error).strip().splitlines()[0]}). {remedy(error)}'


def _compare(source: _Source) -> None:
    if source.expected is None:
        raise DamagedFileError(
            f'{source.name}: nothing says what its SHA-256 must be, so it is not loaded. Pass sha256=..., or use '
            f'timm.create_model, which does not check.'
        )
    if not source.path.is_file():
        raise NoWeightsError(f'{source.name}: the file {source.path} is missing. Install the package again.')
    content = source.path.read_bytes()
    if _BLOB_ID.fullmatch(source.expected):
        kind, found = 'git id', hashlib.sha1(f'blob {len(content)}\0'.encode() + content).hexdigest()
    else:
        kind, found = 'SHA-256', hashlib.sha256(content).hexdigest()
    if found != source.expected:
        raise DamagedFileError(
            f'{source.name} has the {kind} {found}, not {source.expected}: it is damaged, or not what was published. '
            f'Remove {source.path.resolve()} and load it again.'
        )
