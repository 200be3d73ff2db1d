"""Images one by one: an image that cannot be read has a name, and augmentation depends on the image alone."""

import tarfile
import warnings
from functools import partial
from typing import IO, Any, Callable, Dict, List, Optional, Protocol, Sequence, Tuple, Union, cast

import numpy as np
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import VisionDataset
from torchvision.transforms import Compose

from ..errors import InvalidInputError, UserError
from .images import to_mode
from .randomness import seed_cpu

# What Pillow and the readers of archives raise for what is no image, or half of one.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, tarfile.TarError)

# What `timm.data.create_dataset` opens: images by number, timm's own or torchvision's, or a stream.
MapDataset = Union[ImageDataset, VisionDataset]
AnyDataset = Union[MapDataset, IterableImageDataset]


class UnreadableImageError(UserError):
    """An image of the data cannot be read; the message names its file."""


class _Reader(Protocol):
    def __getitem__(self, index: int) -> Tuple[IO[bytes], Optional[int]]: ...


def file_of(dataset: ImageDataset, index: int) -> Tuple[IO[bytes], Optional[int]]:
    """The file of an image, and its class."""
    # timm's annotation has the readers of streams too.
    return cast(_Reader, dataset.reader)[index]


def set_transform(dataset: AnyDataset, transform: Callable, mode: str) -> None:
    """Let a data set convert its images to a mode of Pillow, then transform them."""
    readers: List[Any] = [dataset, getattr(dataset, 'reader', None)]
    for reads in readers:
        # A reader without one gives images as they are opened.
        if getattr(reads, 'input_img_mode', ''):
            reads.input_img_mode = mode
    if not isinstance(dataset, ImageDataset):
        transform = Compose([partial(to_mode, mode=mode), transform])
    dataset.transform = transform


class Images(Dataset):
    """Some images of a data set of timm's, each with its label.

    timm's own data set puts the next image in the place of one that it cannot read; this one raises.

    Args:
        dataset: The data set, with its transform.
        indices: The images that it has; all if None.
        seed: Of the augmentation.
        cache: Keep images in memory as they are before the transform. Each process that loads has its own.

    Raises:
        InvalidInputError: `cache` with a data set whose images do not come from files.
    """

    def __init__(
            self, dataset: MapDataset, indices: Optional[Sequence[int]] = None, seed: int = 0, cache: bool = False,
    ) -> None:
        if cache and not isinstance(dataset, ImageDataset):
            raise InvalidInputError(
                f'--cache-images keeps images of folders and archives; these are read by {type(dataset).__name__}. '
                f'Leave it out.'
            )
        self.cached: Optional[Dict[int, Tuple[Image.Image, Any]]] = {} if cache else None
        self.dataset = dataset
        self.indices: Sequence[int] = range(len(dataset)) if indices is None else indices
        self.seed = seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Tuple[int, int]) -> Tuple[Any, int]:
        """The image and label of key (epoch, number); the epoch is a part of the seed."""
        epoch, number = key
        index = self.indices[number]
        seed_cpu(self.seed, epoch, index)
        return self._read(index)

    def _read(self, index: int) -> Tuple[Any, int]:
        if not isinstance(self.dataset, ImageDataset):
            return self.dataset[index]
        if self.cached is None:
            image, target = self._open(self.dataset, index)
        else:
            if index not in self.cached:
                self.cached[index] = self._open(self.dataset, index)
            image, target = self.cached[index]
        if self.dataset.transform is not None:
            image = self.dataset.transform(image)
        return image, target

    def _open(self, dataset: ImageDataset, index: int) -> Tuple[Image.Image, int]:
        try:
            file, target = file_of(dataset, index)
            with Image.open(file) as opened:
                return to_mode(opened, dataset.input_img_mode), -1 if target is None else target
        except _UNREADABLE as error:
            raise UnreadableImageError(
                f'{self.filename(index)} cannot be read: {error}. Mend or remove it, or leave out all such images with '
                f'--skip-bad-images.'
            ) from error

    def filename(self, index: int) -> str:
        """The name of an image, as far as the data have names."""
        if isinstance(self.dataset, ImageDataset):
            return str(self.dataset.filename(index, absolute=True))
        return f'image {index}'


class _Check(Dataset):
    """Whether each of some images can be read."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> bool:
        index = self.images.indices[number]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                self.images._read(index)
        except UnreadableImageError:
            return False
        return True


def readable(dataset: AnyDataset, indices: Optional[Sequence[int]], workers: int) -> Tuple[List[int], List[int]]:
    """Read every image of a data set that has no transform yet, or those of some indices.

    Returns:
        The indices of those that can be read, and of those that cannot.

    Raises:
        InvalidInputError: The data are a stream.
    """
    if isinstance(dataset, IterableImageDataset):
        raise InvalidInputError('--skip-bad-images needs images by number, which a stream does not have.')
    images = Images(dataset, indices)
    loader = DataLoader(_Check(images), batch_size=64, num_workers=workers, collate_fn=list)
    are_good = np.array([good for batch in loader for good in batch], dtype=bool)
    good, bad = (
        [images.indices[int(number)] for number in np.flatnonzero(are_good == kind)] for kind in (True, False)
    )
    return good, bad
