"""Pictures of digits, and where the images of experiments are."""

import os
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from ..errors import MissingFileError
from .fitting import Data


def data_file(*names: str) -> Path:
    """A file in the folder that `DIT_TIMM_DATA` names.

    Raises:
        MissingFileError: It names none, or there is no such file in it.
    """
    folder = os.environ.get('DIT_TIMM_DATA')
    if folder is None:
        raise MissingFileError('DIT_TIMM_DATA must name the folder that has mnist/mnist.npz and cifar100/test.tar.')
    path = Path(folder, *names)
    if not path.is_file():
        raise MissingFileError(f'There is no {path}; docs/experiments.md says what it must be.')
    return path


def mnist(split: str) -> Data:
    """A split of MNIST, 'train' or 'test': pixels from 0 to 1, (N, 784), and digits.

    Raises:
        MissingFileError: See `data_file`.
    """
    with np.load(data_file('mnist', 'mnist.npz')) as file:
        x, y = torch.from_numpy(file[f'x_{split}']), torch.from_numpy(file[f'y_{split}'])
    return Data(x.flatten(1).float() / 255, y.long())


def small_digits() -> Data:
    """scikit-learn's handwritten digits, of 8x8 pixels from 0 to 1, for want of MNIST."""
    pixels, labels = load_digits(return_X_y=True)
    return Data(torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels))
