"""Small data sets in the memory of the device: decoded once, then cropped, flipped and normalised there.

A GPU trains a network for 32x32 pixels on tens of thousands of images a second, more than many cores decode. So the
pixels of a split are kept on the device as they are after decoding, uint8, and in a file on the disk, whose name is a
digest of the images and of how they are decoded: a split that has not changed is not decoded again.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.data import ImageDataset
from timm.data.loader import fast_collate
from timm.data.transforms import ToNumpy
from torch.utils.data import DataLoader

from ..config.parts import EvaluationConfig, is_stream
from ..config.training import TrainingConfig
from ..errors import DamagedFileError, InvalidInputError, UnavailableError
from ..pretrained.weight_files import digest, read_weights
from .dataset import Images, MapDataset, file_of, set_transform
from .inputs import CROP, eval_transform
from .randomness import seed_of
from .sampler import EpochBatches

_logger = logging.getLogger(__name__)

# Apart from the seeds of orders, see `sampler`.
_AUGMENTATION = 1 << 21
_DECODED_TOGETHER = 256
# A part of the names of the files on the disk. It changes when what `Images` makes of an image file does.
_DECODING = 'upright, 16-bit grey as 8 bits'


class ResidentImages(NamedTuple):
    """The images of a split on a device.

    Attributes:
        pixels: uint8 (N, H, W, C).
        targets: Classes, int64 (N,).
        digest: SHA-256 of the images as they were before decoding, or of the pixels where there are no files.
    """
    pixels: torch.Tensor
    targets: torch.Tensor
    digest: str


def check_augmentation(args: TrainingConfig) -> None:
    """Refuse what cannot be done on the device.

    Raises:
        InvalidInputError: It names the options.
    """
    asked = {
        '--dataset (a stream)': is_stream(args.dataset),
        '--skip-bad-images': args.skip_bad_images,
        '--cache-images': args.cache_images,
    }
    if not args.no_aug:
        asked.update({
            '--aa': bool(args.aa),
            '--color-jitter': bool(args.color_jitter),
            '--train-crop-mode': args.train_crop_mode is not None,
            '--scale': any(value != 1 for value in args.scale),
            '--ratio': any(value != 1 for value in args.ratio),
        })
    refused = [name for name, wanted in asked.items() if wanted]
    if refused:
        raise InvalidInputError(
            f'--data-on-device crops with --crop-padding, flips and normalises, and erases and mixes at random; it '
            f'does not do {", ".join(refused)}. Turn them off (--scale 1 1 --ratio 1 1 --color-jitter 0), or leave '
            f'--data-on-device out.'
        )


class _Exact:
    """The pixels of a PIL image of a given size.

    Args:
        size: Channels, height and width.
    """

    def __init__(self, size: Tuple[int, int, int]) -> None:
        self.size = size

    def __call__(self, image: Any) -> Any:
        pixels = ToNumpy()(image)
        if pixels.shape != self.size:
            raise InvalidInputError(
                f'--data-on-device trains on images of the input size: this one has {_shape(pixels.shape)}, the '
                f'network takes {_shape(self.size)}. Resize the images, name --img-size, or leave --data-on-device out.'
            )
        return pixels


def _shape(size: Sequence[int]) -> str:
    return ' x '.join(map(str, size))


class ResidentSplits:
    """Splits on a device, each read once for all runs of this process.

    Args:
        device: The device.
        cache: The folder of the decoded images.
    """

    def __init__(self, device: str, cache: Path) -> None:
        self.device, self.cache = torch.device(device), cache
        self._splits: Dict[Tuple[Any, ...], ResidentImages] = {}

    def train(self, args: TrainingConfig, dataset: MapDataset, config: Dict[str, Any]) -> ResidentImages:
        """The images of `--train-split` as they are, with a black border as wide as `--crop-padding`.

        Args:
            args: Options.
            dataset: The split.
            config: See `data_config`.

        Raises:
            InvalidInputError: An image does not have the input size, or the device has no room for all.
            UnreadableImageError: One cannot be read.
        """
        images = self._open(args, args.train_split, dataset, config, _Exact(tuple(config['input_size'])), ('exact',))
        key = self._key(args, args.train_split, config, ('padded', args.crop_padding))
        if key not in self._splits:
            border = (0, 0, *[args.crop_padding] * 4)
            self._splits[key] = images._replace(pixels=torch.nn.functional.pad(images.pixels, border))
        return self._splits[key]

    def evaluation(
            self, args: EvaluationConfig, split: str, dataset: MapDataset, config: Dict[str, Any],
    ) -> ResidentImages:
        """The images of a split as evaluation resizes and crops them; see `train`."""
        transform = eval_transform(config, use_prefetcher=True)
        return self._open(args, split, dataset, config, transform, tuple(config[name] for name in CROP))

    def _open(
            self, args: EvaluationConfig, split: str, dataset: MapDataset, config: Dict[str, Any], transform: Callable,
            how: Tuple[Any, ...],
    ) -> ResidentImages:
        key = self._key(args, split, config, how)
        if key not in self._splits:
            self._check_room(len(dataset), config['input_size'])
            set_transform(dataset, transform, config['input_img_mode'])
            self._splits[key] = self._read(dataset, key[1:])
        return self._splits[key]

    @staticmethod
    def _key(
            args: EvaluationConfig, split: str, config: Dict[str, Any], how: Tuple[Any, ...],
    ) -> Tuple[Any, ...]:
        source = (args.dataset, args.data_dir, args.class_map, args.input_key, args.target_key, split)
        return source, tuple(config['input_size']), config['input_img_mode'], *how

    def _read(self, dataset: MapDataset, how: Tuple[Any, ...]) -> ResidentImages:
        files = _files_digest(dataset)
        path = files and self.cache / f'{hashlib.sha256(f"{files} {how} {_DECODING}".encode()).hexdigest()}.safetensors'
        tensors = _cached(path) if path else None
        if tensors is None:
            tensors = _decode(dataset)
            if path:
                _keep(tensors, path)
        moved = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        return ResidentImages(moved['pixels'], moved['targets'], files or digest(tensors))

    def _check_room(self, images: int, size: Sequence[int]) -> None:
        if self.device.type != 'cuda':
            return
        needed, free = images * size[0] * size[1] * size[2], torch.cuda.mem_get_info(self.device)[0]
        if needed > free:
            raise InvalidInputError(
                f'--data-on-device: {images:,} images of {_shape(size)} take {needed / 1e9:.1f} GB, and {self.device} '
                f'has {free / 1e9:.1f} GB free. Leave it out.'
            )


def _files_digest(dataset: MapDataset) -> Optional[str]:
    """SHA-256 of names, classes and contents of all files; None where images do not come from files."""
    if not isinstance(dataset, ImageDataset):
        return None
    total = hashlib.sha256()
    for index, name in enumerate(dataset.filenames()):
        file, target = file_of(dataset, index)
        if not hasattr(file, 'read'):
            return None
        with file:
            content = file.read()
        total.update(f'{name} {target} {len(content)}\n'.encode())
        total.update(content)
    return total.hexdigest()


def _decode(dataset: MapDataset) -> Dict[str, torch.Tensor]:
    """Decode all images, on all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    loader = DataLoader(
        Images(dataset), batch_sampler=_Consecutive(len(dataset)), collate_fn=fast_collate,
        num_workers=cores if cores > 1 else 0,
    )
    pixels, targets = zip(*((images.permute(0, 2, 3, 1), classes) for images, classes in loader))
    return {'pixels': torch.cat(pixels).contiguous(), 'targets': torch.cat(targets)}


class _Consecutive(List[List[Tuple[int, int]]]):
    """Keys of `Images`, in order, in batches."""

    def __init__(self, size: int) -> None:
        super().__init__(
            [(0, number) for number in range(first, min(first + _DECODED_TOGETHER, size))]
            for first in range(0, size, _DECODED_TOGETHER)
        )


def _cached(path: Path) -> Optional[Dict[str, torch.Tensor]]:
    if not path.is_file():
        return None
    try:
        return read_weights(path)
    except DamagedFileError as error:
        _logger.warning(f'{error} The images are decoded again.')
        return None


def _keep(tensors: Dict[str, torch.Tensor], path: Path) -> None:
    """Write the cache whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'{path.name}.{os.getpid()}')
    try:
        save_file(tensors, unfinished, {'sha256': digest(tensors)})
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise UnavailableError(
            f'the decoded images cannot be kept in {path.parent}: {error}. Name another --data-cache'
        ) from error


class _Normalised:
    """uint8 pixels (B, H, W, C) to float32 (B, C, H, W), as timm's PrefetchLoader does it."""

    def __init__(self, config: Dict[str, Any], device: torch.device) -> None:
        self.mean, self.std = (
            torch.tensor([value * 255 for value in config[name]], device=device).view(1, -1, 1, 1)
            for name in ('mean', 'std')
        )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.permute(0, 3, 1, 2).float().sub_(self.mean).div_(self.std).contiguous()


class ResidentEvalBatches:
    """Batches of images on the device, in order; of several processes each has its share.

    Args:
        images: The split.
        indices: Those to use; all if None.
        config: Mean and std, see `data_config`.
        batch_size: Images in a batch.
        rank: Number of this process.
        world_size: Processes.
    """

    def __init__(
            self, images: ResidentImages, indices: Optional[Sequence[int]], config: Dict[str, Any], batch_size: int,
            rank: int = 0, world_size: int = 1,
    ) -> None:
        self.images = images
        device = images.pixels.device
        chosen = range(len(images.targets)) if indices is None else indices
        self.batches = torch.tensor(chosen[rank::world_size], device=device).split(batch_size)
        self.normalised = _Normalised(config, device)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        for index in self.batches:
            yield self.normalised(self.images.pixels[index]), self.images.targets[index]


class ResidentTrainBatches:
    """Batches of images that are cropped, flipped and normalised on the device.

    What happens to an image depends on seed, epoch and image alone, and is drawn on the CPU: the same on any device.

    Args:
        images: The split, with its border.
        indices: Those to use; all if None.
        config: Input size, mean and std, see `data_config`.
        order: Which images make which batch.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
    """

    def __init__(
            self, images: ResidentImages, indices: Optional[Sequence[int]], config: Dict[str, Any], order: EpochBatches,
            hflip: float = 0., vflip: float = 0.,
    ) -> None:
        self.images, self.order, self.hflip, self.vflip = images, order, hflip, vflip
        self.chosen = None if indices is None else torch.tensor(indices)
        self.size = config['input_size'][1:]
        self.normalised = _Normalised(config, images.pixels.device)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        (height, width), (pixels, targets, _) = self.size, self.images
        device = pixels.device
        order = self.order.order()[self.order.start:]
        if self.chosen is not None:
            order = self.chosen[order]
        order, top, left, up, over = (values.to(device) for values in (order, *self._draw()))
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        for index in order:
            # (B, H, 1) and (B, 1, W): where each pixel comes from.
            y = _places(rows, top[index], up[index])[:, :, None]
            x = _places(columns, left[index], over[index])[:, None, :]
            yield self.normalised(pixels[index[:, None, None], y, x]), targets[index]

    def _draw(self) -> Tuple[torch.Tensor, ...]:
        """Corners of the crops and whether images are flipped, upside down and left to right, for this epoch."""
        count, generator = len(self.images.targets), torch.Generator()
        generator.manual_seed(seed_of(_AUGMENTATION, self.order.seed, self.order.epoch))
        spare = [full - size + 1 for full, size in zip(self.images.pixels.shape[1:3], self.size)]
        top, left = (torch.randint(0, choices, (count,), generator=generator) for choices in spare)
        up, over = (torch.rand(count, generator=generator) < chance for chance in (self.vflip, self.hflip))
        return top, left, up, over


def _places(line: torch.Tensor, first: torch.Tensor, reverse: torch.Tensor) -> torch.Tensor:
    """Places first, first + 1 ... of each image (B, length), in reverse where it is flipped."""
    return first[:, None] + torch.where(reverse[:, None], line.flip(0), line)
