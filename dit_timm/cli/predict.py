"""Classify images: `python scripts/predict.py IMAGE ... --checkpoint RUN`, where IMAGE is a file, a folder or a URL.

For each image the most probable classes, and how much of the evidence for the first came from the quadratic term.
Evidence is the logit above the mean of all logits, which is what the softmax sees; the term's share is what is lost
without it, in percent: negative where the term spoke against the class, above 100 where all else did.
"""

import io
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

import torch
from PIL import Image
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from timm.utils import setup_default_logging
from torch import nn

from ..analysis.ablation import without_quadratic
from ..config.options import Parser, option
from ..config.parts import ModelConfig, TrainedConfig
from ..data.dataset import UnreadableImageError
from ..data.folders import find_files
from ..data.images import to_mode
from ..data.inputs import eval_transform
from ..data.splits import data_config
from ..errors import MissingFileError, UserError, message_of
from ..printing import set_up_printing
from ..training.engine import autocast
from ..training.trained import load_trained, parse_with_run, read_classes

_TIMEOUT_SECONDS = 20
_MAX_BYTES = 64 << 20


@dataclass(kw_only=True)
class PredictionConfig(TrainedConfig):
    """The options of a prediction."""

    images: List[str] = option(metavar='IMAGE', positional=True)
    topk: int = option(5, 'classes to print', metavar='N', low=1)


class Prediction(NamedTuple):
    """What a network says of an image.

    Attributes:
        classes: Numbers of the most probable classes, the first one first.
        probabilities: Theirs.
        quadratic_share: Share of the first one's evidence that the quadratic term carried; None where no term is, or
            one class.
    """
    classes: List[int]
    probabilities: List[float]
    quadratic_share: Optional[float]


@torch.inference_mode()
def predict(model: nn.Module, image: torch.Tensor, args: ModelConfig, topk: int) -> Prediction:
    """Classify an image (C, H, W), normalised."""
    def logits() -> torch.Tensor:
        with autocast(args):
            return model(image[None].to(args.device)).float()[0]

    full = logits()
    probabilities, classes = full.softmax(0).topk(min(topk, len(full)))
    with without_quadratic(model) as terms:
        share = None
        # With one class there is nothing that speaks for another.
        if terms and len(full) > 1:
            first = classes[0]
            evidence, rest = (values[first] - values.mean() for values in (full, logits()))
            share = ((evidence - rest) / evidence).item()
    return Prediction(classes.tolist(), probabilities.tolist(), share)


def find_images(names: List[str]) -> List[str]:
    """Names of images: files and URLs as they come, folders as the images in them.

    Raises:
        MissingFileError: A name is none of these, or a folder without an image.
    """
    found = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = find_files(path).images
            if not files:
                raise MissingFileError(f'{name} holds no image.')
            found += sorted(str(Path(file)) for file, _ in files)
        elif path.is_file() or _is_url(name):
            found.append(name)
        else:
            raise MissingFileError(f'{name} is no file, no folder and no URL.')
    return found


def read_image(name: str, mode: str = 'RGB') -> Image.Image:
    """Read a file or URL, in a mode of Pillow.

    Raises:
        UnreadableImageError: It cannot be had, or is no image; the message names it.
    """
    source = io.BytesIO(_download(name)) if _is_url(name) else name
    try:
        with Image.open(source) as image:
            return to_mode(image, mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f'{name} cannot be read as an image: {error}') from error


def _is_url(name: str) -> bool:
    return name.startswith(('http://', 'https://'))


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            content = response.read(_MAX_BYTES + 1)
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise UnreadableImageError(f'{url} cannot be had: {error}') from error
    if len(content) > _MAX_BYTES:
        raise UnreadableImageError(f'{url} is larger than {_MAX_BYTES >> 20} MiB.')
    return content


def main(argv: Optional[List[str]] = None) -> int:
    """Classify and print; returns the exit code, 1 if an image could not be read, or nothing be done."""
    set_up_printing()
    setup_default_logging()
    parser = Parser(PredictionConfig, __doc__)
    args = parse_with_run(parser, parser.given(argv))
    try:
        return _predict(args)
    except (UserError, OSError) as error:
        print(f'error: {message_of(error)}', file=sys.stderr)
        return 1


def _predict(args: PredictionConfig) -> int:
    model = load_trained(args)
    names = read_classes(args, model)
    config = data_config(args, model)
    transform = eval_transform(config)
    # Names are folded, not shortened.
    view = Table(Column('image', overflow='fold'), Column('class', overflow='fold'), 'probability', 'quadratic')
    found, problems = _found(args.images)
    for name in found:
        try:
            image = read_image(name, config['input_img_mode'])
        except UnreadableImageError as error:
            problems.append(str(error))
            continue
        prediction = predict(model, transform(image), args, args.topk)
        share = '' if prediction.quadratic_share is None else f'{100 * prediction.quadratic_share:.1f} %'
        for place, (number, probability) in enumerate(zip(prediction.classes, prediction.probabilities)):
            view.add_row(
                Text('' if place else name), Text(names[number]), f'{100 * probability:.2f} %', '' if place else share,
                end_section=place + 1 == len(prediction.classes),
            )
    if view.row_count:
        Console(width=None if sys.stdout.isatty() else 120).print(view)
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    return 1 if problems else 0


def _found(names: List[str]) -> Tuple[List[str], List[str]]:
    """The images that names stand for, and what is wrong with the other names: the rest are classified all the same."""
    found: List[str] = []
    problems: List[str] = []
    for name in names:
        try:
            found += find_images([name])
        except MissingFileError as error:
            problems.append(str(error))
    return found, problems


if __name__ == '__main__':
    sys.exit(main())
