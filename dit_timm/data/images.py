"""What an image file looks like: the same pixels for training, evaluation, prediction and the page.

Pillow's `convert('RGB')` leaves a photograph lying on its side that its EXIF data want turned, and makes every 16-bit
grey value from 255 on white.
"""

from typing import Dict, Optional, Tuple, cast

import numpy as np
from PIL import ExifTags, Image

from ..errors import InvalidInputError

# Formats that are read everywhere, and how their files end.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF')
ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp', '.tif', '.tiff')

# Not by ImageOps.exif_transpose, which writes all other EXIF data anew and fails where one of them is damaged.
_TURNS: Dict[Optional[int], Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_mode(image: Image.Image, mode: str = 'RGB') -> Image.Image:
    """An opened image as it looks: upright by its EXIF orientation, 16-bit grey as 8 bits, in a mode of Pillow.

    Palettes and transparency are as Pillow converts them.

    Args:
        image: As `PIL.Image.open` returns it.
        mode: A mode with 8 bits a channel.

    Raises:
        OSError, SyntaxError, ValueError: The file is damaged, as Pillow says it.
        InvalidInputError: It has 32-bit values whose range nothing says.
    """
    # Before its EXIF data are looked at: PNG may have them at its end, and TIFF is turned by Pillow.
    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    # PGM of 16 bits has the mode of 32-bit integers, and values up to 65535 whatever its maximum is.
    if image.mode.startswith('I;16') or image.mode == 'I' and image.format in ('PNG', 'PPM'):
        # The high byte, as Pillow does it for 16-bit colours.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ('I', 'F'):
        _check_range(image)
    image = image.convert(mode)
    return image if turn is None else image.transpose(turn)


def _check_range(image: Image.Image) -> None:
    # A pair of numbers for each band, of which there is one here.
    low, high = cast(Tuple[float, float], image.getextrema())
    # Floats up to 1 would be black.
    if not (0 <= low and high <= 255) or image.mode == 'F' and 0 < high <= 1:
        raise InvalidInputError(
            f'its 32-bit grey values are from {low:g} to {high:g}, and nothing says what is black and what is white. '
            f'Save it with 8 or 16 bits'
        )
