"""Weights as safetensors with a digest of the tensors, which is verified when the file is read."""

import hashlib
from pathlib import Path
from typing import Dict, Mapping, Optional

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ..errors import DamagedFileError

_DIGEST = 'sha256'


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def weights_bytes(tensors: Mapping[str, torch.Tensor], metadata: Optional[Mapping[str, str]] = None) -> bytes:
    """Weights as the content of a safetensors file, whose digest says whether they are those of another file.

    The bytes do not: safetensors writes metadata in any order.

    Args:
        tensors: The weights.
        metadata: What else the file says.
    """
    # safetensors takes contiguous tensors only, which those in channels_last are not.
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(contiguous, {**(metadata or {}), _DIGEST: digest(contiguous)})


def read_weights(path: Path) -> Dict[str, torch.Tensor]:
    """Read a safetensors file, and check its digest if it has one: those of other programs have none.

    Raises:
        DamagedFileError: It is no safetensors file, is cut short, or its tensors are not those that were written.
        OSError: It cannot be read.
    """
    try:
        with safe_open(path, framework='pt') as file:
            expected = (file.metadata() or {}).get(_DIGEST)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    # UnicodeDecodeError and the like: a header that is no header.
    except (SafetensorError, ValueError) as error:
        raise DamagedFileError(f'{path} is no whole safetensors file: {error}') from error
    if expected is not None and digest(tensors) != expected:
        raise DamagedFileError(f'{path} is damaged: its tensors are not those that were written (sha256 {expected}).')
    return tensors


def load_weights(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: Path) -> None:
    """Load weights into a network, all of them or none.

    Args:
        model: The network.
        tensors: Its state.
        source: Where the weights come from, for the message.

    Raises:
        DamagedFileError: Names or shapes are not those of the network.
    """
    state = model.state_dict()
    missing, unknown = sorted(state.keys() - tensors.keys()), sorted(tensors.keys() - state.keys())
    shapes = [
        f'{name} is {tuple(tensors[name].shape)}, not {tuple(state[name].shape)}'
        for name in sorted(state.keys() & tensors.keys()) if tensors[name].shape != state[name].shape
    ]
    problems = [
        f'{what}: {", ".join(names[:5])}{" ..." if len(names) > 5 else ""}'
        for what, names in (('missing', missing), ('unknown', unknown), ('other shapes', shapes)) if names
    ]
    if problems:
        raise DamagedFileError(
            f'{source} does not fit the network; {"; ".join(problems)}. Is it of another model, number of '
            f'classes or image size?'
        )
    model.load_state_dict(tensors)
