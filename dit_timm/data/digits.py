"""Scikit-learn's handwritten digits as an image folder: real images that need no download."""

import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ..files import default_cache


def digits_folder() -> Path:
    """Write the 1,797 digits (8x8 pixels, 10 classes) as `<split>/<digit>/<number>.png`, once.

    A fifth of the images, drawn with a fixed seed and in equal shares of the classes, is the split 'validation'; the
    rest is 'train'.

    Returns:
        The folder, under the user's cache.
    """
    folder = default_cache() / 'digits'
    if folder.exists():
        return folder
    digits = load_digits()
    indices = range(len(digits.target))
    train, validation = train_test_split(indices, test_size=0.2, random_state=0, stratify=digits.target)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written under another name first, so that the folder is either absent or complete.
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    for split, members in (('train', train), ('validation', validation)):
        for index in members:
            path = unfinished / split / str(digits.target[index]) / f'{index:04d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            # Pixels count 0 to 16.
            Image.fromarray((digits.images[index] * (255 / 16)).round().astype('uint8')).save(path)
    try:
        os.replace(unfinished, folder)
    except OSError:
        # Another process was faster.
        shutil.rmtree(unfinished)
        if not folder.exists():
            raise
    return folder
