"""Verify: a published model is what was exported, seen by someone who downloads it for the first time."""

import json
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import timm
from huggingface_hub import HfApi, snapshot_download
from safetensors import safe_open

from dit_timm.errors import DamagedFileError, InvalidInputError
from dit_timm.pretrained.golden import TOLERANCE, golden_difference
from dit_timm.pretrained.weight_files import digest, load_weights, read_weights

from .card import read_card
from .export import CARD, CONFIG, GOLDEN, WEIGHTS

# Formats that execute code when they are loaded.
_PICKLES = ('.bin', '.ckpt', '.joblib', '.npy', '.pickle', '.pkl', '.pt', '.pth', '.tar')


class Verification(NamedTuple):
    """What was found.

    Attributes:
        repo_id: The repository.
        commit: The commit that was looked at.
        passed: What holds, in words.
        problems: What does not.
    """
    repo_id: str
    commit: str
    passed: List[str]
    problems: List[str]


def verify(repo_id: str, revision: Optional[str] = None, token: Optional[str] = None) -> Verification:
    """Download a repository into an empty cache and look at all of it.

    Args:
        repo_id: The repository.
        revision: Branch, tag or commit; the newest commit if None.
        token: Of the Hub; from the usual places if None.

    Returns:
        What was found.

    Raises:
        HfHubHTTPError: The Hub refuses, or there is no such repository or revision.
    """
    api = HfApi(token=token)
    commit = api.model_info(repo_id, revision=revision).sha
    found = Verification(repo_id, commit, [], [])
    with tempfile.TemporaryDirectory() as cache:
        folder = Path(snapshot_download(repo_id, revision=commit, cache_dir=cache, token=token))
        _check_files(found, folder)
        if not found.problems:
            _check_sums(found, api, cache)
        if not found.problems:
            _check_network(found, folder)
        if not found.problems:
            _check_card(found, folder)
    return found


def _check_files(found: Verification, folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()]
    missing = [name for name in (WEIGHTS, CONFIG, GOLDEN, CARD) if name not in names]
    pickles = [name for name in names if name.lower().endswith(_PICKLES)]
    if missing:
        found.problems.append(f'missing: {", ".join(missing)}')
    if pickles:
        found.problems.append(f'files that can execute code: {", ".join(pickles)}')
    if not missing and not pickles:
        found.passed.append(f'{len(names)} files, none that can execute code')


def _check_sums(found: Verification, api: HfApi, cache: str) -> None:
    result = api.verify_repo_checksums(found.repo_id, revision=found.commit, cache_dir=cache)
    wrong = [mismatch['path'] for mismatch in result.mismatches] + list(result.missing_paths)
    if wrong:
        found.problems.append(f'downloaded bytes are not what the repository lists: {", ".join(wrong)}')
    else:
        found.passed.append(f'checksums of {result.checked_count} files')


def _check_network(found: Verification, folder: Path) -> None:
    try:
        weights, golden = read_weights(folder / WEIGHTS), read_weights(folder / GOLDEN)
        with safe_open(folder / WEIGHTS, framework='pt') as file:
            metadata = file.metadata() or {}
        if metadata.get('golden_sha256') != digest(golden):
            raise DamagedFileError(f'{GOLDEN} is not the one that {WEIGHTS} was exported with.')
        # Of the folder: the very bytes whose sums were compared.
        model = timm.create_model(f'local-dir:{folder}', pretrained=True)
        load_weights(model, weights, folder / WEIGHTS)
    except (DamagedFileError, RuntimeError, KeyError, ValueError) as error:
        found.problems.append(f'the network cannot be loaded: {error}')
        return
    found.passed.append('loaded strictly through timm.create_model')
    difference = golden_difference(model, golden)
    if difference > TOLERANCE:
        found.problems.append(
            f'golden outputs differ by {difference:.2g} of the largest logit; {TOLERANCE:g} is what may be.'
        )
    else:
        found.passed.append(f'golden outputs equal to {difference:.1g} of the largest logit (tolerance {TOLERANCE:g})')


def _check_card(found: Verification, folder: Path) -> None:
    config: Dict[str, Any] = json.loads((folder / CONFIG).read_text())
    try:
        data = read_card(folder / CARD).data
    except InvalidInputError as error:
        found.problems.append(f'the card cannot be read: {error}')
        return
    cfg = config['pretrained_cfg']
    name = f'{config["architecture"]}.{cfg["tag"]}'
    problems = [
        f'the card says {key} {said!r}, the config {expected!r}' for key, said, expected in (
            ('licence', data.license, cfg.get('license')), ('model', data.model_name, name),
            ('library', data.library_name, 'timm'),
        ) if said != expected
    ]
    found.problems.extend(problems)
    if not problems:
        found.passed.append('card and config agree')


