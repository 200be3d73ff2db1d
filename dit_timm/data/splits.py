"""Data sets, through timm.data."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from sklearn.model_selection import train_test_split
from timm.data import IterableImageDataset, create_dataset

from ..config.parts import DataConfig, InputConfig
from ..config.training import TrainingConfig
from ..errors import InvalidInputError, MissingFileError
from ..models.network import Network
from .archives import check_archive, compressed
from .class_map import read_class_map
from .dataset import AnyDataset
from .folders import open_folder
from .inputs import image_mode, input_config
from .streams import as_opened

# Hugging Face's library has a cache of its own, which --data-dir can replace.
_CACHED = ('hfds/', 'hfids/')
# What a split may be called instead, as in timm.
_SYNONYMS = {'train': ('training',), 'validation': ('val', 'valid', 'eval', 'evaluation')}


def open_split(args: DataConfig, split: str, is_training: bool = False) -> AnyDataset:
    """Open one split of the data that the options name.

    With `--data-dir DIR`, a split is a folder `DIR/<split>`, an archive `DIR/<split>.tar`, or what timm makes of
    `--dataset`. Without, the data are the handwritten digits.

    Raises:
        MissingFileError: There is no such split; what there is instead is listed.
    """
    class_map = read_class_map(args.class_map, args.data_dir) if args.class_map else None
    if args.dataset:
        if not args.data_dir and not args.dataset.lower().startswith(_CACHED):
            raise MissingFileError(f'--dataset {args.dataset} needs --data-dir, the folder that has or will have it.')
        return _opened(
            f'--dataset {args.dataset}',
            name=args.dataset,
            root=args.data_dir,
            split=split,
            class_map=class_map or '',
            is_training=is_training,
            download=args.dataset_download,
            batch_size=args.batch_size,
            # Readers shuffle what they train on by it; what is evaluated stays in order.
            seed=args.seed if isinstance(args, TrainingConfig) else 0,
            num_samples=args.train_num_samples if is_training else args.val_num_samples,
            input_key=args.input_key,
            target_key=args.target_key,
            # Left as they are opened, where timm's reader does that; see `as_opened`.
            input_img_mode='' if as_opened(args.dataset) else 'RGB',
        )
    if args.data_dir:
        root = Path(args.data_dir)
    else:
        from .digits import digits_folder
        root = digits_folder()
    # timm takes the whole folder where it finds no split: the path of the split is found here.
    path = _find_split(root, split)
    return open_folder(path, class_map)


def _opened(what: str, **kwargs: Any) -> AnyDataset:
    try:
        return create_dataset(**kwargs)
    except (AssertionError, RuntimeError, ImportError, ValueError, OSError) as error:
        # The words of timm, torchvision and readers for names, files and packages that are not there.
        raise InvalidInputError(f'{what} cannot be opened: {str(error).strip() or type(error).__name__}') from error


def _find_split(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise MissingFileError(f'--data-dir {root} is not a folder.')
    for name in (split, *_SYNONYMS.get(split, ())):
        for path in (root / f'{name}.tar', root / name):
            if path.is_dir():
                return path
            if path.suffix == '.tar' and path.is_file():
                check_archive(path)
                return path
        packed = compressed(root, name)
        if packed is not None:
            check_archive(packed)
    found = sorted(path.name for path in root.iterdir())
    raise MissingFileError(
        f'--data-dir {root} has no split {split!r}, neither a folder nor a .tar; it has {found[:10]}. '
        f'--train-split, --val-split and --test-split name the splits.'
    )


def class_names(dataset: AnyDataset) -> Optional[List[str]]:
    """The classes of a folder or archive in the order of their numbers; None where the data do not say."""
    reader = getattr(dataset, 'reader', None)
    # timm's reader of folders and its reader of archives name it differently.
    numbers = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None)
    return sorted(numbers, key=numbers.get) if numbers else None


def labels(dataset: AnyDataset) -> Optional[np.ndarray]:
    """The classes of all images in order; None where they are not known without reading the images."""
    reader = getattr(dataset, 'reader', None)
    found = getattr(reader, 'targets', None)
    if found is None:
        found = [sample[1] for sample in getattr(reader, 'samples', ())] or getattr(dataset, 'targets', None)
    return None if found is None or len(found) != len(dataset) else np.asarray(found)


def evaluated_name(args: DataConfig) -> str:
    """What the images that `open_evaluated` opens are called, in words."""
    return f'{args.val_fraction} of {args.train_split}' if args.val_fraction else args.val_split


def open_evaluated(args: DataConfig) -> Tuple[AnyDataset, Optional[List[int]]]:
    """Open `--val-split`, or the split with the images that `--val-fraction` holds out; these are None for all.

    Raises:
        UserError: See `open_split` and `hold_out`.
    """
    if not args.val_fraction:
        return open_split(args, args.val_split), None
    dataset = open_split(args, args.train_split)
    return dataset, hold_out(dataset, args.val_fraction)[1]


def hold_out(dataset: AnyDataset, share: float) -> Tuple[List[int], List[int]]:
    """Split the images of a data set in two, with equal shares of the classes where they are known.

    The same images are held out whatever the seed of a run, so that runs with several seeds can be compared.

    Returns:
        The images to train on and those held out, as indices.

    Raises:
        InvalidInputError: The share leaves one side without an image of each class, or the data are a stream.
    """
    if isinstance(dataset, IterableImageDataset):
        raise InvalidInputError(f'--val-fraction {share} needs images by number, which a stream does not have.')
    classes = labels(dataset)
    try:
        train, held_out = train_test_split(range(len(dataset)), test_size=share, random_state=0, stratify=classes)
    except ValueError as error:
        raise InvalidInputError(
            f'--val-fraction {share} of {len(dataset)} images cannot be held out: {error}'
        ) from error
    return sorted(train), sorted(held_out)


def check_classes(train_set: AnyDataset, other: Optional[AnyDataset], num_classes: Optional[int]) -> Optional[int]:
    """Compare the classes of the training split with those of another, if there is one, and with `--num-classes`.

    Returns:
        The number of classes that the network needs; None where nothing says it.

    Raises:
        InvalidInputError: They do not fit, or a class has no image.
    """
    classes = class_names(train_set)
    if classes is None:
        if num_classes is None and isinstance(train_set, IterableImageDataset):
            raise InvalidInputError('The data do not say how many classes they have: name --num-classes.')
        if num_classes == 1:
            raise InvalidInputError('--num-classes is 1: a network tells two or more apart.')
        return num_classes
    if num_classes is not None and num_classes < len(classes):
        raise InvalidInputError(f'--num-classes is {num_classes}, but the training data have {len(classes)} classes.')
    if len(classes) == 1:
        raise InvalidInputError(f'The training data have one class, {classes[0]!r}: a network tells two or more apart.')
    others = None if other is None else class_names(other)
    if others is not None and others != classes:
        different = sorted(set(classes) ^ set(others))
        raise InvalidInputError(
            f'The splits differ in their classes: {different[:10]} are in one only. A class without an image counts '
            f'as absent.'
        )
    return num_classes or len(classes)


def data_config(args: InputConfig, model: Network, use_test_size: bool = False) -> Dict[str, Any]:
    """What a network is shown of an image: see `input_config`, and 'input_img_mode', see `image_mode`."""
    config = input_config(vars(args), model, use_test_size)
    return {**config, 'input_img_mode': image_mode(vars(args), config['input_size'][0])}
