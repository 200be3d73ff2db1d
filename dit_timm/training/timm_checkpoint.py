"""Checkpoints of timm's train.py, and other files of torch.save: read without executing anything."""

import argparse
import pickle
import re
from pathlib import Path
from typing import Any, Dict, Mapping

import timm
import torch
from timm.models import clean_state_dict

from ..errors import DamagedFileError, InvalidInputError

# Where timm's and others' checkpoints have their weights, averaged and not; a file may also be nothing but weights.
_AVERAGED, _WEIGHTS = ('state_dict_ema', 'model_ema'), ('state_dict', 'model')


def read_checkpoint(path: Path) -> Dict[str, Any]:
    """Read a file of torch.save that holds tensors, plain values and, as timm's do, the options of the run.

    Raises:
        DamagedFileError: It is no such file, or cut short.
        InvalidInputError: It holds objects that only code could make.
        OSError: It cannot be read.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # torch has one class for what it refuses and what it cannot read.
        refused = re.search(r'Unsupported global: GLOBAL (\S+)', str(error))
        if refused:
            raise InvalidInputError(
                f'{path} holds Python objects beside tensors, such as {refused[1]}, and to load them could run code: '
                f'it is not loaded. Where you trust it, save its weights alone, or as safetensors.'
            ) from error
        raise DamagedFileError(f'{path} is no whole file of torch.save.') from error
    if not isinstance(content, dict):
        raise DamagedFileError(f'{path} holds a {type(content).__name__}, and no weights by name.')
    return content


def weights_of(checkpoint: Mapping[str, Any], use_ema: bool, path: Path) -> Dict[str, torch.Tensor]:
    """The weights of a checkpoint, under the names that the network itself has for them.

    Args:
        checkpoint: See `read_checkpoint`.
        use_ema: The averaged weights.
        path: Where it is, for messages.

    Raises:
        InvalidInputError: It has no averaged weights.
        DamagedFileError: It has no weights.
    """
    names = [name for name in (_AVERAGED if use_ema else _WEIGHTS) if checkpoint.get(name) is not None]
    if use_ema and not names:
        raise InvalidInputError(f'{path} has no averaged weights ({" or ".join(_AVERAGED)}): leave --use-ema out.')
    tensors = checkpoint[names[0]] if names else checkpoint
    if not isinstance(tensors, dict) or not tensors or not all(map(torch.is_tensor, tensors.values())):
        raise DamagedFileError(f'{path} has no weights: it holds {", ".join(map(str, list(checkpoint)[:5]))}.')
    return clean_state_dict(tensors)


def options_of(checkpoint: Mapping[str, Any]) -> Dict[str, Any]:
    """The options of the run that wrote a checkpoint, or the network alone, as far as it says."""
    args, architecture = checkpoint.get('args'), checkpoint.get('arch')
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return {'model': architecture} if isinstance(architecture, str) and timm.is_model(architecture) else {}
