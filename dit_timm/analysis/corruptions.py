"""Images as cameras, weather and compression spoil them, in five strengths.

Kinds and strengths are those of CIFAR-10-C (Hendrycks and Dietterich, https://arxiv.org/abs/1903.12261), for images of
32x32 pixels.
"""

import io
import zlib
from typing import Any, Callable, Dict, Tuple

import numpy as np
from PIL import Image, ImageFilter

# Standard deviation of the noise, of pixels from 0 to 1.
_NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
# Standard deviation in pixels.
_BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)
# What is added to the value of each pixel (as of hue, saturation, value), from 0 to 1.
_BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
_JPEG_QUALITY = (80, 65, 58, 50, 40)


def _noise(image: Image.Image, deviation: float) -> Image.Image:
    pixels = np.asarray(image) / 255
    # The same for an image whatever network sees it, and another for each image.
    generator = np.random.default_rng(zlib.crc32(image.tobytes()))
    noisy = pixels + deviation * generator.standard_normal(pixels.shape)
    return Image.fromarray(np.round(255 * noisy.clip(0, 1)).astype(np.uint8))


def _blur(image: Image.Image, deviation: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(deviation))


def _brightness(image: Image.Image, added: float) -> Image.Image:
    hue, saturation, value = image.convert('HSV').split()
    value = value.point([min(255, round(level + 255 * added)) for level in range(256)])
    return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, 'JPEG', quality=quality)
    return Image.open(content).convert('RGB')


CORRUPTIONS: Dict[str, Tuple[Callable[[Image.Image, Any], Image.Image], Tuple[float, ...]]] = {
    'noise': (_noise, _NOISE),
    'blur': (_blur, _BLUR),
    'brightness': (_brightness, _BRIGHTNESS),
    'JPEG': (_jpeg, _JPEG_QUALITY),
}
STRENGTHS = (1, 2, 3, 4, 5)


def corrupt(image: Image.Image, kind: str, strength: int) -> Image.Image:
    """Spoil an RGB image.

    Args:
        image: The image.
        kind: A key of `CORRUPTIONS`.
        strength: 1 to 5.

    Raises:
        ValueError: There is no such kind or strength.
    """
    if kind not in CORRUPTIONS or strength not in STRENGTHS:
        raise ValueError(
            f'kind must be one of {", ".join(CORRUPTIONS)} and strength from 1 to 5; got {kind!r} and {strength!r}.'
        )
    function, values = CORRUPTIONS[kind]
    return function(image, values[strength - 1])
