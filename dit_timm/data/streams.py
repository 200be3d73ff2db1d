"""Data that are read from their beginning only: webdataset shards, streamed Hugging Face datasets.

What cannot be opened at any place cannot be resumed at any batch: a run on such data resumes at the epoch.
"""

from typing import Any, Dict, Optional, Protocol, cast

import torch
from timm.data import IterableImageDataset
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader

from ..config.parts import EvaluationConfig, is_stream
from ..config.training import TrainingConfig
from ..errors import InvalidInputError
from .dataset import AnyDataset
from .prefetched import Prefetched
from .randomness import seed_of

# Apart from the seeds of images, steps and orders.
_WORKERS = 1 << 21


def as_opened(dataset: str) -> bool:
    """Whether timm's reader of a stream can give images as Pillow opens them, before they are turned upright."""
    return is_stream(dataset) and not dataset.lower().startswith('tfds/')


class _Reader(Protocol):
    num_samples: int
    dist_rank: int
    dist_num_replicas: int


def _reader(dataset: IterableImageDataset) -> _Reader:
    # timm's annotation has the readers of images by number too.
    return cast(_Reader, dataset.reader)


def size_of(dataset: AnyDataset) -> int:
    """Images of a data set; the length of a stream is what the workers of one process get of it."""
    return _reader(dataset).num_samples if isinstance(dataset, IterableImageDataset) else len(dataset)


def check_options(args: TrainingConfig) -> None:
    """Refuse options that need images by number.

    Raises:
        InvalidInputError: It names them.
    """
    needing = {
        '--val-fraction': args.val_fraction, '--skip-bad-images': args.skip_bad_images,
        '--checkpoint-interval': args.checkpoint_interval, '--cache-images': args.cache_images,
    }
    given = [name for name, value in needing.items() if value]
    if given:
        raise InvalidInputError(
            f'--dataset {args.dataset} is a stream, read from its beginning only: {", ".join(given)} would need images '
            f'by number. Leave it out, or read the data from a folder or with hfds/ in place of hfids/.'
        )
    if args.workers < 1:
        raise InvalidInputError(
            f'--dataset {args.dataset} is a stream and needs --workers 1 or more; got {args.workers}.'
        )


def check_shards(dataset: IterableImageDataset, workers: int, world_size: int) -> None:
    """Refuse more workers than there are shards: some would have nothing to read.

    Raises:
        InvalidInputError: It says how many there are.
    """
    files = getattr(getattr(dataset.reader, 'split_info', None), 'filenames', None)
    if files is not None and len(files) < workers * world_size:
        processes = f' in each of {world_size} processes' if world_size > 1 else ''
        raise InvalidInputError(
            f'The training data have {len(files)} shards, too few for --workers {workers}{processes}: lower --workers, '
            f'or write the data into more shards.'
        )


class _Label:
    """A label, seen to be one of the network's classes."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, label: int) -> int:
        if not 0 <= label < self.num_classes:
            raise InvalidInputError(f'The data have the label {label}; --num-classes is {self.num_classes}.')
        return label


def check_labels(dataset: IterableImageDataset, num_classes: int) -> None:
    """Let a stream refuse labels that are no class of the network, when they come."""
    dataset.target_transform = _Label(num_classes)


def read_whole(dataset: IterableImageDataset) -> None:
    """Let each of several processes read a stream to its end, for evaluation.

    timm would deal the shards out, and cut the shares to one length: some images would come twice, some never.
    """
    reader = _reader(dataset)
    reader.dist_rank, reader.dist_num_replicas = 0, 1


class StreamBatches:
    """The batches of this process in an epoch of a stream: shuffled by timm's readers, from their seed and the epoch.

    Attributes:
        size: Images of all processes.
        batches: Batches of this process in an epoch.
        starts_anywhere: Whether an epoch can begin at any batch.
    """

    starts_anywhere = False

    def __init__(self, dataset: IterableImageDataset, batch_size: int, seed: int, workers: int, rank: int) -> None:
        # Readers deal the images out to the workers of all processes in whole batches.
        dataset.set_loader_cfg(num_workers=workers)
        self.dataset, self.seed, self.rank = dataset, seed, rank
        self.size = size_of(dataset)
        self.batches = len(dataset) // batch_size
        self.generator = torch.Generator()

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Let the next iteration be over an epoch; `start` is 0."""
        assert start == 0, start
        self.dataset.set_epoch(epoch)
        # Seeds of the workers, which readers shuffle and transforms augment with.
        self.generator.manual_seed(seed_of(_WORKERS, self.seed, epoch, self.rank))


def stream_loader(
        args: EvaluationConfig, dataset: IterableImageDataset, config: Dict[str, Any],
        batches: Optional[StreamBatches] = None,
) -> Prefetched:
    """Batches of a stream: those of an epoch of training, or without `batches` all images in order."""
    device = torch.device(args.device)
    dataset.set_loader_cfg(num_workers=args.workers)
    loader = DataLoader(
        dataset,
        batch_size=args.batch_size,
        drop_last=batches is not None,
        num_workers=args.workers,
        collate_fn=fast_collate,
        pin_memory=device.type == 'cuda',
        generator=batches.generator if batches is not None else None,
        # Workers are started for each epoch: their shuffling and augmentation begin with the seeds of the epoch.
        persistent_workers=False,
    )
    return Prefetched(loader, config, device)
