"""Checks of words of the command line that timm knows: an unknown name is refused at once, with near ones."""

import argparse
import re
from typing import List, cast

from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.optim import get_optimizer_class, list_optimizers
from torchvision.transforms import InterpolationMode

from ..printing import near_names

# timm's names for how images are resized; in training one can be drawn for each image.
_INTERPOLATIONS = [mode.value for mode in InterpolationMode if mode is not InterpolationMode.NEAREST_EXACT]
_RANDOM = 'random'
_LOOKAHEAD = 'lookahead_'
# Policies of timm's, what makes them, and what the parts after the name may be: timm skips what it does not know.
_SECTIONS = {'rand': r't.+|(mstd|mmax|inc|m|n|p)\d.*', 'augmix': r'(mstd|m|w|d|a|b)\d.*'}
_MAKERS = {'rand': rand_augment_transform, 'augmix': augment_and_mix_transform}
_POLICIES = (*_SECTIONS, 'original', 'originalr', 'v0', 'v0r', '3a')


def optimizer(text: str) -> str:
    """An optimizer of timm's, `lookahead_` in front or not, that can be had here."""
    name = text.lower().removeprefix(_LOOKAHEAD)
    # timm's annotation has names with descriptions too.
    known = cast(List[str], list_optimizers())
    if name not in known:
        raise argparse.ArgumentTypeError(f'timm has no optimizer {text!r}. {near_names(name, known)}')
    try:
        get_optimizer_class(name)
    except (ImportError, AssertionError) as error:
        # timm's word for a library or a GPU that some need.
        raise argparse.ArgumentTypeError(f'{text!r} cannot be had here: {error}.') from error
    return text


def interpolation(text: str) -> str:
    """How images are resized; empty for the model's."""
    return _one_of(text, _INTERPOLATIONS)


def train_interpolation(text: str) -> str:
    """How images are resized in training; empty for the model's."""
    return _one_of(text, [*_INTERPOLATIONS, _RANDOM])


def _one_of(text: str, names: List[str]) -> str:
    if text and text not in names:
        raise argparse.ArgumentTypeError(f'unknown interpolation {text!r}. {near_names(text, names)}')
    return text


def policy(text: str) -> str:
    """An AutoAugment, RandAugment or AugMix policy, as timm writes them; empty for none."""
    if not text:
        return text
    name, *sections = text.split('-')
    if name not in _POLICIES:
        raise argparse.ArgumentTypeError(f'unknown policy {text!r}. {near_names(name, _POLICIES)}')
    allowed = _SECTIONS.get(name, r'mstd\d.*')
    for section in sections:
        if not re.fullmatch(allowed, section):
            raise argparse.ArgumentTypeError(
                f'{section!r} in {text!r} means nothing to timm: sections are letters and a number, as in '
                f'rand-m9-mstd0.5.'
            )
    try:
        _MAKERS.get(name, auto_augment_transform)(text, {})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r} has a number that timm cannot read: {error}') from error
    return text


def positive_int(text: str) -> int:
    """A number of things, of which there is one at least."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1; got {text}')
    return value
