"""Batches of images."""

from typing import Any, Dict, Optional, Sequence, Tuple, Union

import torch
from timm.data import create_transform
from timm.data.loader import fast_collate
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torchvision.transforms import Compose, RandomCrop

from ..config.parts import EvaluationConfig, is_stream
from ..config.training import TrainingConfig
from ..errors import InvalidInputError
from .dataset import Images, set_transform
from .prefetched import Prefetched
from .resident import ResidentEvalBatches, ResidentSplits, ResidentTrainBatches, check_augmentation
from .sampler import EpochBatches
from .streams import StreamBatches, check_labels, check_shards, read_whole, stream_loader

# What gives (images, targets) on the device.
Batches = Union[Prefetched, ResidentTrainBatches, ResidentEvalBatches]


def train_loader(
        args: TrainingConfig,
        dataset: Dataset,
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
        batches = _epoch_batches(args, len(dataset) if indices is None else len(indices), rank, world_size)
        flips = {} if args.no_aug else {'hflip': args.hflip, 'vflip': args.vflip}
        images = resident.train(args, dataset, config)
        return ResidentTrainBatches(images, indices, config, batches, **flips), batches
    interpolation = args.train_interpolation
    transform = create_transform(
        config['input_size'],
        is_training=True,
        no_aug=args.no_aug,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        auto_augment=args.aa,
        interpolation=config['interpolation'] if args.no_aug or not interpolation else interpolation,
        mean=config['mean'],
        std=config['std'],
        use_prefetcher=True,
    )
    if args.crop_padding:
        crop = RandomCrop(config['input_size'][-2:], padding=args.crop_padding)
        transform = Compose([crop, transform])
    set_transform(dataset, transform, config['input_img_mode'])
    if is_stream(args.dataset):
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
        dataset: Dataset,
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
        images = resident.evaluation(args, split, dataset, config)
        return ResidentEvalBatches(images, indices, config, args.batch_size, rank, world_size)
    transform = create_transform(
        config['input_size'],
        interpolation=config['interpolation'],
        mean=config['mean'],
        std=config['std'],
        crop_pct=config['crop_pct'],
        crop_mode=config['crop_mode'],
        use_prefetcher=True,
    )
    set_transform(dataset, transform, config['input_img_mode'])
    if is_stream(args.dataset):
        read_whole(dataset)
        if args.num_classes is not None:
            check_labels(dataset, args.num_classes)
        return stream_loader(args, dataset, config)
    images = Images(dataset, indices)
    share = [(0, number) for number in range(rank, len(images), world_size)]
    return _loader(args, images, config, BatchSampler(share, args.batch_size, drop_last=False))


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
