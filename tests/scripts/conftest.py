"""Images for the tests of the scripts."""

import pytest
import torch
from PIL import Image


@pytest.fixture
def write_greys(tmp_path):
    """Writes folders of 32x32 images whose classes, `class0`, `class1` ..., are shades of grey with noise."""
    def write(**splits):
        """Maps the name of a split to the number of images of each class; returns the folder of the splits."""
        generator = torch.Generator().manual_seed(0)
        for split, counts in splits.items():
            for label, count in enumerate(counts):
                folder = tmp_path / 'data' / split / f'class{label}'
                folder.mkdir(parents=True)
                for index in range(count):
                    pixels = 80 * label + torch.randint(0, 40, (32, 32, 3), generator=generator)
                    Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f'{index}.png')
        return tmp_path / 'data'

    return write
