"""dit_timm.images: what an image file looks like, whatever its mode and however it was held."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from dit_timm.data.images import to_mode

ORIENTATION = 0x0112


def reopened(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def blocks():
    """Four colours, so that each of the eight orientations looks another way."""
    colours = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[9, 9, 9], [250, 250, 0], [250, 250, 250]]], np.uint8)
    return Image.fromarray(colours.repeat(16, 0).repeat(16, 1))


def grey(dtype):
    return np.arange(0, 65536, 128).reshape(16, 32).astype(dtype)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_photographs_are_upright(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = to_mode(reopened(blocks(), kind, exif=exif))
    expected = ImageOps.exif_transpose(reopened(blocks(), kind, exif=exif))
    assert image.mode == 'RGB' and np.array_equal(image, expected.convert('RGB'))
    if orientation == 6:
        # Written by hand: the first row is the last column.
        assert image.size == (32, 48) and np.abs(np.array(image)[8, 24] - np.array([250., 0, 0])).max() < 20


def test_damaged_exif_data_turn_nothing_and_stop_nothing():
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010f] = 6, 'maker'
    content = io.BytesIO()
    blocks().save(content, 'JPEG', exif=exif)
    content, generator = content.getvalue(), np.random.default_rng(0)
    begin = content.index(b'Exif')
    for _ in range(300):
        damaged = bytearray(content)
        for place in generator.integers(begin + 4, begin + len(exif.tobytes()), 4):
            damaged[place] = generator.choice([0, 255, generator.integers(256)])
        assert sorted(to_mode(Image.open(io.BytesIO(damaged))).size) == [32, 48]


@pytest.mark.parametrize('kind, dtype', [('PNG', '<u2'), ('TIFF', '<u2'), ('TIFF', '>u2'), ('PPM', '<u2')])
def test_grey_of_16_bits_keeps_its_shades(kind, dtype):
    values = grey(dtype)
    mode = {'<u2': 'I;16', '>u2': 'I;16B'}[dtype]
    picture = reopened(Image.frombytes(mode, values.shape[::-1], values.tobytes()), kind)
    image = np.array(to_mode(picture))
    assert image.shape == (16, 32, 3) and len(np.unique(image)) == 256
    assert np.array_equal(image, np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK'])
def test_other_modes_are_as_pillow_converts_them(mode):
    kind = 'TIFF' if mode == 'CMYK' else 'PNG'
    picture = blocks().convert(mode)
    options = {'transparency': 0} if mode == 'P' else {}
    image, expected = (reopened(picture, kind, **options) for _ in range(2))
    assert np.array_equal(to_mode(image), expected.convert('RGB'))


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_values_of_32_bits_must_be_those_of_8(dtype):
    values = grey(dtype)
    small = reopened(Image.fromarray((values // 256).astype(dtype)), 'TIFF')
    assert np.array_equal(np.array(to_mode(small))[..., 0], values // 256)
    with pytest.raises(ValueError, match='from 0 to 65408, and nothing says what is black'):
        to_mode(reopened(Image.fromarray(values), 'TIFF'))


def test_floats_up_to_one_are_not_black():
    with pytest.raises(ValueError, match='from 0 to 0.99'):
        to_mode(reopened(Image.fromarray(grey(np.float32) / 65536), 'TIFF'))
    assert np.array(to_mode(reopened(Image.fromarray(np.zeros((4, 4), np.float32)), 'TIFF'))).max() == 0
