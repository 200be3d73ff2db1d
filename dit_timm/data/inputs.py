"""What a network is given: its channels, its image size and how pixels are normalised, from options named as timm's."""

import json
from typing import Any, Callable, Dict, Mapping, Optional, cast

from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from ..config.options import facts_of
from ..config.parts import IMAGE_MODES, NetworkConfig, requested_input
from ..errors import InvalidInputError
from ..models.network import Network

_REQUESTS = ('in_chans', 'input_size', 'img_size')
_STATISTICS = ('mean', 'std')
# How evaluation resizes and crops.
CROP = ('interpolation', 'crop_pct', 'crop_mode')
# In the metadata of files of weights, see `options_metadata`.
OPTIONS = 'options'
_MODE_OF_CHANNELS = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}


def input_arguments(options: Mapping[str, Any], fixed_input_size: Optional[bool]) -> Dict[str, Any]:
    """The arguments of `timm.create_model` that build a network for the input that options ask for.

    Args:
        options: See `requested_input`; of `model_kwargs`, what is there wins.
        fixed_input_size: Whether the network is built for one image size.

    Raises:
        InvalidInputError: See there.
    """
    channels, size = requested_input(options)
    arguments: Dict[str, Any] = {}
    if channels is not None:
        arguments['in_chans'] = channels
    if size is not None and fixed_input_size:
        arguments['img_size'] = size[0] if size[0] == size[1] else size
    return {**arguments, **options['model_kwargs']}


def input_config(options: Mapping[str, Any], model: Network, use_test_size: bool = False) -> Dict[str, Any]:
    """Input size, mean, std, crop and interpolation: the options', else the network's.

    A network with another number of channels than its cfg has gets the average of the cfg's mean and std, as from timm.

    Args:
        options: See `requested_input`; `mean`, `std` (one value, or one for each channel), `interpolation`, `crop_pct`
            and `crop_mode`.
        model: The network.
        use_test_size: Take the network's size and crop for tests, where its pretrained weights have one.

    Returns:
        'input_size' (C, H, W), 'mean' and 'std' of length C, 'interpolation', 'crop_pct' and 'crop_mode'.

    Raises:
        InvalidInputError: The network has other channels than the options say, or `mean` or `std` has.
    """
    requested, size = requested_input(options)
    others = {name: value for name, value in options.items() if name not in (*_REQUESTS, *_STATISTICS)}
    config = resolve_data_config(others, model=model, use_test_size=use_test_size)
    channels = _channels(model) or config['input_size'][0]
    if requested not in (None, channels):
        raise InvalidInputError(f'{requested} channels are asked for, but the network has {channels}.')
    config['input_size'] = (channels, *(size or config['input_size'][1:]))
    for name in _STATISTICS:
        values = options.get(name)
        if values is not None and len(values) not in (1, channels):
            raise InvalidInputError(
                f'--{name} has {len(values)} values, {_words(values)}: it takes one, or one for each of {channels} '
                f'channels.'
            )
        values = tuple(config[name] if values is None else values)
        config[name] = values if len(values) == channels else (sum(values) / len(values),) * channels
    return config


def eval_transform(config: Mapping[str, Any], use_prefetcher: bool = False) -> Callable[[Image.Image], Any]:
    """timm's transform for evaluation, which gives float32 tensors (C, H, W), normalised.

    Args:
        config: See `input_config`.
        use_prefetcher: Give uint8 arrays in their place, to be normalised on the device.
    """
    names = (*_STATISTICS, *CROP)
    # timm's annotation has the three parts into which it can be split.
    return cast(Callable[[Image.Image], Any], create_transform(
        config['input_size'], **{name: config[name] for name in names}, use_prefetcher=use_prefetcher,
    ))


def options_metadata(options: Mapping[str, Any]) -> Dict[str, str]:
    """What a file of weights says of the options that its network and its images need, beside the network's name."""
    said = {
        name: options[name] for name, facts in facts_of(NetworkConfig).items()
        if facts.in_weights and options.get(name) not in (None, '', {})
    }
    return {OPTIONS: json.dumps(said, sort_keys=True)}


def _channels(model: Network) -> Optional[int]:
    """The channels that a network of timm takes: cfgs are of pretrained weights, which it need not have."""
    first = model.pretrained_cfg.get('first_conv')
    modules = dict(model.named_modules())
    named = [modules.get(name) for name in ((first,) if isinstance(first, str) else first or ())]
    return next((module.in_channels for module in (*named, *modules.values()) if isinstance(module, nn.Conv2d)), None)


def image_mode(options: Mapping[str, Any], channels: int) -> str:
    """What images are converted to, as Pillow calls it.

    Args:
        options: Of them, `input_img_mode`.
        channels: What the network takes.

    Raises:
        InvalidInputError: No mode has as many channels, or the one that is asked for has others.
    """
    mode = options.get('input_img_mode') or _MODE_OF_CHANNELS.get(channels)
    if mode is None:
        raise InvalidInputError(f'The network takes {channels} channels, and images have {_words(_MODE_OF_CHANNELS)}.')
    if IMAGE_MODES[mode] != channels:
        raise InvalidInputError(
            f'--input-img-mode {mode} has {IMAGE_MODES[mode]} channels; the network takes {channels}.'
        )
    return mode


def _words(values: Any) -> str:
    return ' '.join(map(str, values))
