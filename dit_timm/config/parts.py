"""The options that training, evaluation and prediction share, named as in timm's train.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch

from ..errors import InvalidInputError
from .choices import interpolation
from .options import Options, option

# Modes of Pillow with 8 bits a channel, and how many channels they have.
IMAGE_MODES = {'L': 1, 'LA': 2, 'RGB': 3, 'YCbCr': 3, 'LAB': 3, 'HSV': 3, 'RGBA': 4, 'CMYK': 4}
# Networks that are trained beside a Dit network, see `training.variants`.
DIT, PLAIN, FROZEN, TRANSPOSED, MLP = 'dit', 'plain', 'frozen', 'transposed', 'mlp'
# What each is, for --help.
VARIANTS: Dict[str, str] = {
    DIT: 'the network as its name says',
    PLAIN: 'its twin without a quadratic term',
    FROZEN: 'the quadratic weights stay zero, all else is as in dit',
    TRANSPOSED: 'the map of the quadratic term transposed, as the authors\' CIFAR code does',
    MLP: 'in place of the quadratic term a 1x1 convolution, ReLU and a 1x1 convolution with as many parameters',
}
# timm's names for data that are read from their beginning only.
_STREAMS = ('wds', 'hfids', 'tfds')


def is_stream(dataset: str) -> bool:
    """Whether `--dataset` names data that are read as a stream."""
    return dataset.partition('/')[0].lower() in _STREAMS


def default_device() -> str:
    """A GPU where there is one that torch can use."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


@dataclass(kw_only=True)
class DataConfig(Options):
    """Which images are read."""
    title = 'data'

    data_dir: Optional[str] = option(
        None, 'folder with the data (default: handwritten digits)', metavar='DIR', may_change=True,
    )
    dataset: str = option('', 'timm dataset, such as torch/cifar10', metavar='NAME')
    val_split: str = option(
        'validation', 'split to evaluate on; while training, "" for none', metavar='NAME',
    )
    class_map: str = option('', 'class names, a line each, in the order of their numbers', metavar='FILE')
    dataset_download: bool = option(False, 'let --dataset download what --data-dir lacks')
    input_key: Optional[str] = option(None, 'where a sample of --dataset has its image', metavar='KEY')
    target_key: Optional[str] = option(None, 'where a sample of --dataset has its label', metavar='KEY')
    train_num_samples: Optional[int] = option(
        None, 'images of a stream that does not say how many', metavar='N', low=1,
    )
    val_num_samples: Optional[int] = option(None, 'the same of the split that is evaluated', metavar='N', low=1)
    skip_bad_images: bool = option(False, 'read all images first, and leave out those that cannot be read')
    batch_size: int = option(128, short='-b', metavar='N', low=1)
    workers: int = option(2, 'processes that load data', short='-j', metavar='N', low=0, may_change=True)


@dataclass(kw_only=True)
class InputConfig(Options):
    """What a network is shown of an image."""
    title = 'input'

    img_size: Optional[int] = option(
        None, 'image size (default: the model\'s)', metavar='N', low=1, in_weights=True,
    )
    in_chans: Optional[int] = option(
        None, 'channels of an image (default: the model\'s)', metavar='N', low=1, in_weights=True,
    )
    input_size: Optional[List[int]] = option(
        None, 'channels and image size in one', nargs=3, metavar=('C', 'H', 'W'), low=1, in_weights=True,
    )
    input_img_mode: Optional[str] = option(
        None, f'what images are converted to: {", ".join(IMAGE_MODES)} (default: L for one channel, RGB for three)',
        choices=tuple(IMAGE_MODES), metavar='MODE', in_weights=True,
    )
    crop_pct: Optional[float] = option(None, 'share of the image that evaluation crops', in_weights=True)
    crop_mode: Optional[str] = option(
        None, 'default: the model\'s', choices=('center', 'squash', 'border'), in_weights=True,
    )
    mean: Optional[List[float]] = option(None, 'mean of the pixels (default: the model\'s)', in_weights=True)
    std: Optional[List[float]] = option(
        None, 'standard deviation of the pixels (default: the model\'s)', in_weights=True,
    )
    interpolation: str = option(
        '', 'how images are resized (default: the model\'s)', check=interpolation, in_weights=True,
    )


@dataclass(kw_only=True)
class ModelConfig(Options):
    """Which network is built, and in which precision it runs."""
    title = 'model'

    model: str = option(
        'dit_resnet20', 'of timm\'s registry, or local-dir:FOLDER or hf-hub:OWNER/NAME', metavar='NAME',
        is_experiment=False,
    )
    pretrained: bool = option(False)
    num_classes: Optional[int] = option(
        None, 'default: the number of classes in the data', metavar='N', low=1, is_experiment=False, in_weights=True,
    )
    model_kwargs: Dict[str, Any] = option({}, metavar='KEY=VALUE', in_weights=True)
    variant: str = option(
        DIT, '; '.join(f'{name}: {what}' for name, what in VARIANTS.items()), choices=tuple(VARIANTS),
        is_experiment=False, in_weights=True,
    )
    device: str = option(
        default_device, 'cpu, cuda, mps, ... (default: cuda where there is a GPU for it)', may_change=True,
    )
    channels_last: bool = option(False)
    amp: bool = option(False, 'mixed precision')
    amp_dtype: str = option('bfloat16', choices=('bfloat16', 'float16'))


@dataclass(kw_only=True)
class NetworkConfig(InputConfig, ModelConfig):
    """A network and what it is shown."""


@dataclass(kw_only=True)
class EvaluationConfig(DataConfig, NetworkConfig):
    """A network and the images that it is evaluated on."""


@dataclass(kw_only=True)
class WeightsConfig(Options):
    """Where trained weights are."""
    title = 'weights'

    checkpoint: Optional[Path] = option(
        None, 'a run\'s folder, or weights: safetensors, or a checkpoint of timm\'s train.py', metavar='FILE',
    )
    use_ema: bool = option(False, 'the averaged weights of a checkpoint of timm\'s')


@dataclass(kw_only=True)
class TrainedConfig(WeightsConfig, NetworkConfig):
    """A network and its trained weights."""


def requested_input(options: Mapping[str, Any]) -> Tuple[Optional[int], Optional[Tuple[int, int]]]:
    """The channels and the image size (H, W) that options ask for; None where they ask for none.

    Args:
        options: Of them, `in_chans`, `img_size` and `input_size` (C, H, W).

    Raises:
        InvalidInputError: They contradict each other.
    """
    channels, side, size = (options.get(name) for name in ('in_chans', 'img_size', 'input_size'))
    if size is None:
        return channels, None if side is None else (side, side)
    words = ' '.join(map(str, size))
    if channels not in (None, size[0]):
        raise InvalidInputError(f'--in-chans {channels} and --input-size {words} differ: leave one of them out.')
    if side is not None and (side, side) != tuple(size[1:]):
        raise InvalidInputError(f'--img-size {side} and --input-size {words} differ: leave one of them out.')
    return size[0], tuple(size[1:])
