"""Batches of images."""

from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union, cast

import torch
from timm.data import IterableImageDataset, create_transform
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, RandomCrop

from ..config.parts import EvaluationConfig
from ..config.training import TrainingConfig
from ..errors import InvalidInputError
from .dataset import AnyDataset, Images, set_transform
from .inputs import eval_transform
from .prefetched import Prefetched
from .resident import ResidentEvalBatches, ResidentSplits, ResidentTrainBatches, check_augmentation
from .sampler import EpochBatches
from .streams import StreamBatches, check_labels, check_shards, read_whole, stream_loader

# What gives (images, targets) on the device.
Batches = Union[Prefetched, ResidentTrainBatches, ResidentEvalBatches]


def train_loader(
        args: TrainingConfig,
        dataset: AnyDataset,
        config: Dict[str, Any],
        indices: Optional[Sequence[int]] = None,
        rank: int = 0,
        world_size: int = 1,
        resident: Optional[ResidentSplits] = None,
) -> Tuple[Batches, Union[EpochBatches, StreamBatches]]:
    """Batches of augmented images; random erasing and Mixup come later, see `Steps`.

    Args:
        args: Options.
        dataset: The images.
        config: See `data_config`.
        indices: Those to use; all if None.
        rank: Number of this process.
        world_size: Processes.
        resident: Where images are with `--data-on-device`.

    Returns:
        The loader, and what says where it begins.

    Raises:
        InvalidInputError: The images do not fill a batch, or cannot be on the device as the options ask.
    """
    if resident is not None:
        check_augmentation(args)
        assert not isinstance(dataset, IterableImageDataset), 'a stream, which was refused'
        batches = _epoch_batches(args, len(dataset) if indices is None else len(indices), rank, world_size)
        flips = {} if args.no_aug else {'hflip': args.hflip, 'vflip': args.vflip}
        images = resident.train(args, dataset, config)
        return ResidentTrainBatches(images, indices, config, batches, **flips), batches
    interpolation = args.train_interpolation
    # timm's annotation has the three parts into which it can be split.
    transform = cast(Callable, create_transform(
        config['input_size'],
        is_training=True,
        no_aug=args.no_aug,
        train_crop_mode=args.train_crop_mode,
        scale=(args.scale[0], args.scale[1]),
        ratio=(args.ratio[0], args.ratio[1]),
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        auto_augment=args.aa,
        interpolation=config['interpolation'] if args.no_aug or not interpolation else interpolation,
        mean=config['mean'],
        std=config['std'],
        use_prefetcher=True,
    ))
    if args.crop_padding:
        crop = RandomCrop(config['input_size'][-2:], padding=args.crop_padding)
        transform = Compose([crop, transform])
    set_transform(dataset, transform, config['input_img_mode'])
    if isinstance(dataset, IterableImageDataset):
        assert args.num_classes is not None, 'the number is the network\'s by now'
        check_shards(dataset, args.workers, world_size)
        check_labels(dataset, args.num_classes)
        batches = StreamBatches(dataset, args.batch_size, args.seed, args.workers, rank)
        return stream_loader(args, dataset, config, batches), batches
    images = Images(dataset, indices, args.seed, args.cache_images)
    batches = _epoch_batches(args, len(images), rank, world_size)
    return _loader(args, images, config, batches), batches


def _epoch_batches(args: TrainingConfig, size: int, rank: int, world_size: int) -> EpochBatches:
    batches = EpochBatches(size, args.batch_size, args.seed, rank, world_size)
    if batches.batches == 0:
        together = f' in each of {world_size} processes' if world_size > 1 else ''
        raise InvalidInputError(
            f'{size} training images do not fill one batch: lower --batch-size, {args.batch_size}{together}.'
        )
    return batches


def eval_loader(
        args: EvaluationConfig,
        dataset: AnyDataset,
        config: Dict[str, Any],
        indices: Optional[Sequence[int]] = None,
        rank: int = 0,
        world_size: int = 1,
        resident: Optional[ResidentSplits] = None,
        split: str = '',
) -> Batches:
    """Batches of all images, in order.

    Of several processes each has its share, and no image comes twice; of a stream each has all images. With `resident`
    the images are on the device, as those of `split`.
    """
    if resident is not None:
        assert not isinstance(dataset, IterableImageDataset), 'a stream, which training refuses'
        images = resident.evaluation(args, split, dataset, config)
        return ResidentEvalBatches(images, indices, config, args.batch_size, rank, world_size)
    set_transform(dataset, eval_transform(config, use_prefetcher=True), config['input_img_mode'])
    if isinstance(dataset, IterableImageDataset):
        read_whole(dataset)
        if args.num_classes is not None:
            check_labels(dataset, args.num_classes)
        return stream_loader(args, dataset, config)
    images = Images(dataset, indices)
    share = [(0, number) for number in range(rank, len(images), world_size)]
    batches = [share[first:first + args.batch_size] for first in range(0, len(share), args.batch_size)]
    return _loader(args, images, config, batches)


def _loader(args: EvaluationConfig, images: Images, config: Dict[str, Any], batches: Any) -> Prefetched:
    device = torch.device(args.device)
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=args.workers,
        collate_fn=fast_collate,
        pin_memory=device.type == 'cuda',
        persistent_workers=args.workers > 0,
    )
    return Prefetched(loader, config, device)
