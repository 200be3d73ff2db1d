"""Spoiled images: what each kind does, and that strength is strength."""

import io

import numpy as np
import pytest
from PIL import Image

from dit_timm.analysis.corruptions import CORRUPTIONS, STRENGTHS, corrupt


@pytest.fixture
def image():
    rows, columns = np.mgrid[:32, :32]
    pixels = np.stack([128 + 60 * np.sin(rows / 3), 128 + 60 * np.cos(columns / 2), 100 + 3 * rows], axis=2)
    return Image.fromarray(pixels.round().astype(np.uint8))


def change(image, spoiled):
    return np.sqrt(np.mean((np.asarray(image, float) - np.asarray(spoiled, float)) ** 2))


@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_stronger_is_further_away(image, kind):
    changes = [change(image, corrupt(image, kind, strength)) for strength in STRENGTHS]
    assert changes == sorted(changes) and 0.1 < changes[0] < changes[-1] < 80
    assert corrupt(image, kind, 3).size == image.size and corrupt(image, kind, 3).mode == 'RGB'


def test_noise_has_its_deviation_and_is_that_of_the_image(image):
    grey = Image.new('RGB', (200, 200), (128, 128, 128))
    assert change(grey, corrupt(grey, 'noise', 5)) == pytest.approx(0.1 * 255, rel=0.02)
    noise = [
        np.asarray(corrupt(one, 'noise', 2)).astype(int) - np.asarray(one)
        for one in (grey, grey.copy(), Image.new('RGB', grey.size, (128, 128, 129)))
    ]
    assert np.array_equal(noise[0], noise[1]) and abs(np.corrcoef(noise[0].flat, noise[2].flat)[0, 1]) < 0.02


def test_blur_keeps_what_is_even_and_the_mean(image):
    grey = Image.new('RGB', (32, 32), (10, 200, 77))
    assert change(grey, corrupt(grey, 'blur', 5)) == 0
    edge = Image.fromarray(np.repeat(np.uint8([[0] * 16 + [255] * 16])[..., None], 3, 2).repeat(32, 0))
    assert np.asarray(corrupt(edge, 'blur', 5)).mean() == pytest.approx(127.5, abs=1)


def test_brightness_adds_to_the_value():
    image = Image.new('RGB', (4, 4), (100, 50, 50))
    assert np.abs(np.asarray(corrupt(image, 'brightness', 5))[0, 0].astype(int) - [176, 88, 88]).max() <= 2


def test_jpeg_is_pillows(image):
    content = io.BytesIO()
    image.save(content, 'JPEG', quality=40)
    assert np.array_equal(np.asarray(corrupt(image, 'JPEG', 5)), np.asarray(Image.open(content)))


def test_errors(image):
    with pytest.raises(ValueError, match="noise, blur, brightness, JPEG and strength from 1 to 5; got 'fog' and 1"):
        corrupt(image, 'fog', 1)
    with pytest.raises(ValueError, match='got .noise. and 6'):
        corrupt(image, 'noise', 6)
