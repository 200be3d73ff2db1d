"""Labels of ImageNet's variants, through timm: networks of 1,000 classes, tests on some of them or with other labels.

ImageNet-A and -R have images of 200 classes of ImageNet, numbered anew; ImageNet-V2 and -Sketch have all classes, and
need nothing of this. ReaL labels (https://arxiv.org/abs/2006.07159) give each image of ImageNet's validation split
every class that is in it, or none.
"""

import importlib.resources
from pathlib import Path
from typing import List

import torch
from torch import nn

from ..errors import InvalidInputError, MissingFileError
from ..models.network import Network

# Lists that timm has: classes of ImageNet, by number.
_LISTS = ('imagenet_a', 'imagenet_r')


def read_valid_labels(name: str) -> List[int]:
    """The classes of a test, as numbers of the network's.

    Args:
        name: A file with a number in each line, or 'imagenet_a' or 'imagenet_r'.

    Raises:
        OSError: There is no such file.
        InvalidInputError: A line is no number.
    """
    if name in _LISTS:
        text = importlib.resources.files('timm.data').joinpath('_info', f'{name}_indices.txt').read_text()
    elif Path(name).is_file():
        # Editors of Windows begin UTF-8 with a mark of their own.
        text = Path(name).read_text(encoding='utf-8-sig')
    else:
        raise MissingFileError(f'--valid-labels {name} is no file, and neither of {", ".join(_LISTS)}.')
    try:
        classes = [int(line) for line in text.split()]
    except ValueError as error:
        raise InvalidInputError(
            f'--valid-labels {name} must hold the number of a class in each line: {error}'
        ) from error
    if not classes:
        raise InvalidInputError(f'--valid-labels {name} is empty.')
    return classes


class SomeClasses(nn.Module):
    """A network that answers for some of its classes only, (N, ...) to (N, len(classes)).

    Args:
        model: The network.
        classes: Numbers of the classes.

    Raises:
        InvalidInputError: The network lacks one of them.
    """

    def __init__(self, model: Network, classes: List[int]) -> None:
        super().__init__()
        if not 0 <= min(classes) <= max(classes) < model.num_classes:
            raise InvalidInputError(
                f'--valid-labels has classes {min(classes)} to {max(classes)}; the network has {model.num_classes}.'
            )
        self.model, self.num_classes = model, len(classes)
        self.register_buffer('classes', torch.tensor(classes), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the classes."""
        return self.model(x)[:, self.classes.to(x.device)]
