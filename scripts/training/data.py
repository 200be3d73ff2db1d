"""Data sets and loaders, through timm.data."""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .digits import digits_folder

# What a split may be called instead, as in timm.
_SYNONYMS = {'train': ('training',), 'validation': ('val', 'valid', 'eval', 'evaluation')}


def open_split(args: argparse.Namespace, split: str, is_training: bool = False) -> Dataset:
    """Open one split of the data that the options name.

    With `--data-dir DIR`, a split is a folder `DIR/<split>`, an archive `DIR/<split>.tar`, or what timm makes of
    `--dataset`. Without, the data are the handwritten digits.

    Raises:
        FileNotFoundError: There is no such split; what there is instead is listed.
    """
    if args.dataset:
        if not args.data_dir:
            raise FileNotFoundError(f'--dataset {args.dataset} needs --data-dir, the folder to keep it in.')
        return create_dataset(args.dataset, root=args.data_dir, split=split, is_training=is_training)
    root = Path(args.data_dir) if args.data_dir else digits_folder()
    # timm takes the whole folder where it finds no split: the path of the split is found here.
    return create_dataset('', root=str(_find_split(root, split)), search_split=False, is_training=is_training)


def _find_split(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f'--data-dir {root} is not a folder.')
    for name in (split, *_SYNONYMS.get(split, ())):
        for path in (root / f'{name}.tar', root / name):
            if path.exists():
                return path
    found = sorted(path.name for path in root.iterdir())
    raise FileNotFoundError(
        f'--data-dir {root} has no split {split!r}, neither a folder nor a .tar; it has {found[:10]}. '
        f'--train-split and --val-split name the splits.'
    )


def class_names(dataset: Dataset) -> Optional[List[str]]:
    """The classes of a folder or archive in the order of their numbers; None where the data do not say."""
    reader = getattr(dataset, 'reader', None)
    # timm's reader of folders and its reader of archives name it differently.
    numbers = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None)
    return sorted(numbers, key=numbers.get) if numbers else None


def data_config(args: argparse.Namespace, model: nn.Module) -> Dict[str, Any]:
    """Input size, mean, std, crop and interpolation: the options', else the model's."""
    return resolve_data_config(vars(args), model=model)


def train_loader(
        args: argparse.Namespace,
        dataset: Dataset,
        config: Dict[str, Any],
        device: torch.device,
) -> DataLoader:
    """Batches of augmented images, in an order that depends on the seed."""
    interpolation = args.train_interpolation
    return create_loader(
        dataset,
        input_size=config['input_size'],
        batch_size=args.batch_size,
        is_training=True,
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
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
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        device=device,
    )


def eval_loader(args: argparse.Namespace, dataset: Dataset, config: Dict[str, Any], device: torch.device) -> DataLoader:
    """Batches of all images, in order."""
    return create_loader(
        dataset,
        input_size=config['input_size'],
        batch_size=args.batch_size,
        interpolation=config['interpolation'],
        mean=config['mean'],
        std=config['std'],
        crop_pct=config['crop_pct'],
        crop_mode=config['crop_mode'],
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        device=device,
    )
