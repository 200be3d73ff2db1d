"""Pictures in and out of the page."""

from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from PIL import Image

from dit_timm.data.images import FORMATS, to_mode
from dit_timm.errors import InvalidInputError

MAX_BYTES = 20 << 20
MAX_PIXELS = 50_000_000
_LIMIT = f'at most {MAX_PIXELS // 10 ** 6} million pixels are taken.'
_MAX_LENGTH = 20
# Small inputs are enlarged to at least this many pixels a side.
_SHOWN_SIZE = 320


class UnreadablePictureError(InvalidInputError):
    """A file is too large or no picture; the message says which."""


def read_picture(path: Path) -> Image.Image:
    """Read a file that a stranger sent, upright and in RGB.

    Raises:
        UnreadablePictureError: It is too large, broken, or no picture.
        InvalidInputError: Nothing says which of its values is white.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UnreadablePictureError(f'The file has {size / 2 ** 20:.1f} MiB; at most {MAX_BYTES >> 20} MiB are taken.')
    try:
        # Others go through decoders that were not made for a stranger's files; EPS would be handed to a program.
        with Image.open(path, formats=FORMATS) as image:
            # Before it is decoded: a small file can hold a huge picture.
            _check_shape(*image.size)
            return to_mode(image)
    except Image.UnidentifiedImageError as error:
        raise UnreadablePictureError(f'The file is no picture that can be read ({", ".join(FORMATS)}).') from error
    except Image.DecompressionBombError as error:
        raise UnreadablePictureError(f'The picture is huge; {_LIMIT}') from error
    except (OSError, SyntaxError) as error:
        raise UnreadablePictureError(
            'The picture is broken: it ends too early or is damaged. Upload it again.'
        ) from error


def _check_shape(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadablePictureError(f'The picture has {width} x {height} pixels; {_LIMIT}')
    # A network's input has at least the short side's size: a thread of pixels would be enlarged beyond all measure.
    if max(width, height) > _MAX_LENGTH * min(width, height):
        raise UnreadablePictureError(
            f'The picture has {width} x {height} pixels; its long side may be at most {_MAX_LENGTH} times the short.'
        )


def seen(image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """A normalised image (3, H, W) as the picture that it is, enlarged if it is small."""
    pixels = image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return _picture(pixels.clamp(0, 1).permute(1, 2, 0).numpy())


def coloured(view: Image.Image, evidence: torch.Tensor) -> Image.Image:
    """A picture in grey, red where the evidence (H, W) is positive and blue where it is negative."""
    strength = (evidence / evidence.abs().max().clamp(min=torch.finfo(evidence.dtype).tiny)).numpy()
    colours = np.zeros((*strength.shape, 3), dtype=np.float32)
    colours[strength > 0] = 1, 0, 0
    colours[strength < 0] = 0, 0, 1
    opacity = Image.fromarray((255 * np.abs(strength)).astype(np.uint8)).resize(view.size, Image.Resampling.BILINEAR)
    return Image.composite(_picture(colours).resize(view.size), view.convert('L').convert('RGB'), opacity)


def _picture(pixels: np.ndarray) -> Image.Image:
    picture = Image.fromarray((255 * pixels).round().astype(np.uint8))
    factor = -(-_SHOWN_SIZE // min(picture.size))
    return picture.resize([factor * side for side in picture.size], Image.Resampling.NEAREST)
