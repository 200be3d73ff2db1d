"""Checkpoints of a run: all that it takes to go on as if it had never stopped.

A checkpoint is a folder `RUN/checkpoints/<epoch>-<batch>`:

    model.safetensors   weights
    ema.safetensors     averaged weights, if the run has them
    state.pt            everything else, readable with `weights_only=True`: no code is ever executed
    files.json          SHA-256 of the other files

It is written under another name, brought to the disk, and renamed: it is there whole or not at all, whenever the
process is killed. The one before is kept.
"""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import torch

from ..errors import DamagedFileError
from ..files import sync_folder, write_file
from ..pretrained.weight_files import read_weights, weights_bytes

_FOLDER, _UNFINISHED, _MANIFEST = 'checkpoints', 'unfinished', 'files.json'
# Epochs and batches; see `save_checkpoint`.
_NAME = re.compile(r'\d{6,}-\d{8,}')
_KEPT = 2


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        path: Its folder.
        weights: By name of the file without ending, 'model' and perhaps 'ema'.
        state: Everything else.
    """
    path: Path
    weights: Dict[str, Dict[str, torch.Tensor]]
    state: Dict[str, Any]


def save_checkpoint(
        run: Path, epoch: int, batch: int, weights: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any],
) -> Path:
    """Write a checkpoint, and remove those before the last.

    Args:
        run: The folder of the run.
        epoch: Epochs that are done.
        batch: Batches of the next epoch that are done.
        weights: See `Checkpoint`.
        state: Tensors, numbers, texts, and lists and dicts of them.

    Returns:
        Its folder.

    Raises:
        OSError: It could not be written; those that were there still are.
    """
    folder = run / _FOLDER
    target, unfinished = folder / f'{epoch:06d}-{batch:08d}', folder / _UNFINISHED
    if target.exists():
        # The same moment of the same run: it went on from there.
        return target
    files = {f'{name}.safetensors': weights_bytes(tensors) for name, tensors in weights.items()}
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    files['state.pt'] = buffer.getvalue()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[_MANIFEST] = json.dumps(sums, indent=1).encode()
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, content in files.items():
            write_file(unfinished / name, content)
        os.replace(unfinished, target)
        sync_folder(folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    for old in list_checkpoints(run)[:-_KEPT]:
        shutil.rmtree(old)
    return target


def list_checkpoints(run: Path) -> List[Path]:
    """The checkpoints of a run, the last one last."""
    folder = run / _FOLDER
    # Whatever else lies there (.DS_Store, Thumbs.db, @eaDir) was put there by no run.
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []


def load_checkpoint(run: Path) -> Checkpoint:
    """Read the last checkpoint of a run.

    Raises:
        DamagedFileError: There is none, or it is not what was written.
    """
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise DamagedFileError(f'{run} holds no checkpoint: it is no folder of a run, or of one that never began.')
    path = checkpoints[-1]
    before = f', and the run will go on from {checkpoints[-2].name}' if len(checkpoints) > 1 else ''
    remedy = f'Remove the folder {path}{before}.'
    try:
        sums = json.loads((path / _MANIFEST).read_text())
        found = {file.name for file in path.iterdir()} - {_MANIFEST}
        if not isinstance(sums, dict) or found != sums.keys() or not {'model.safetensors', 'state.pt'} <= found:
            raise DamagedFileError(f'the files {sorted(found)} are not those that {_MANIFEST} lists.')
        for name, expected in sums.items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != expected:
                raise DamagedFileError(f'{name} is not what was written (sha256).')
        state = torch.load(path / 'state.pt', map_location='cpu', weights_only=True)
        weights = {file.stem: read_weights(file) for file in path.glob('*.safetensors')}
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, DamagedFileError) as error:
        raise DamagedFileError(f'The checkpoint {path} is damaged: {error} {remedy}') from error
    return Checkpoint(path, weights, state)


def describe(checkpoints: List[Path]) -> Optional[str]:
    """The last of some checkpoints in words; None if there is none."""
    return f'The last checkpoint, {checkpoints[-1]}, is whole.' if checkpoints else None
