"""`python -m hub page`: what it makes of files, and the page itself in a browser."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw

from dit_timm.analysis.quadratic_map import Explained
from hub import __main__ as command_line
from hub.page import class_names, classify, load, sentence, shipped
from hub.pictures import UnreadablePictureError, coloured, read_picture, seen

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
NAME = 'dit_resnet20.cifar10'


def photograph(path, size=(90, 60)):
    image = Image.new('RGB', size, 'skyblue')
    ImageDraw.Draw(image).ellipse((20, 20, 70, 50), fill='red')
    image.save(path)
    return path


def png_of(width, height, path):
    """A PNG of a few bytes that says it has so many pixels."""
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    content = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')
    path.write_bytes(content)
    return path


def huge(path):
    return png_of(20_000, 20_000, path)


def large(path):
    return png_of(8000, 8000, path)


def thread(path):
    """Enlarged to a network's input, it would fill the memory."""
    return png_of(1, 1_000_000, path)


def postscript(path):
    path.write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n')
    return path


def truncated(path):
    photograph(path)
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])
    return path


def floats(path):
    Image.fromarray(np.linspace(0, 1, 900, dtype=np.float32).reshape(30, 30)).save(path, 'TIFF')
    return path


def no_picture(path):
    path.write_text('not a picture')
    return path


def test_the_networks_offered_are_those_in_the_package():
    assert NAME in shipped()
    assert all('_init' not in name for name in shipped())


def test_an_answer(tmp_path):
    answer, full, without, view, evidence = classify(str(photograph(tmp_path / 'a.png')), NAME)
    best = max(full, key=full.get)
    assert answer.startswith(f'**{best}**, {100 * full[best]:.1f} %. Without the quadratic term ')
    assert set(full) == set(without) == set(class_names(load(NAME))) and 'airplane' in full
    assert sum(full.values()) == pytest.approx(1, abs=1e-5) and sum(without.values()) == pytest.approx(1, abs=1e-5)
    assert full != without
    assert view.size == evidence.size == (320, 320)


@pytest.mark.parametrize('make, message', [
    (huge, 'huge; at most 50 million pixels'),
    (large, 'has 8000 x 8000 pixels; at most 50 million pixels'),
    (thread, 'has 1 x 1000000 pixels; its long side may be at most 20 times'),
    (truncated, 'ends too early or is damaged'),
    (floats, 'nothing says what is black and what is white'),
    (no_picture, 'no picture that can be read'),
    (postscript, 'no picture that can be read'),
    (lambda path: None, 'Upload a photograph first'),
])
def test_files_that_cannot_be_shown_get_a_message(tmp_path, make, message):
    path = make(tmp_path / 'a.png')
    with pytest.raises(gr.Error, match=message):
        classify(path and str(path), NAME)


def test_large_files_are_refused_by_their_size(tmp_path):
    path = photograph(tmp_path / 'a.png')
    with path.open('r+b') as file:
        file.truncate((20 << 20) + 1)
    with pytest.raises(UnreadablePictureError, match='20.0 MiB; at most 20 MiB'):
        read_picture(path)


def test_photographs_are_turned_upright(tmp_path):
    image = Image.new('RGB', (4, 2))
    exif = image.getexif()
    # Orientation: turned by 90 degrees.
    exif[0x0112] = 6
    image.save(tmp_path / 'a.jpg', exif=exif)
    assert read_picture(tmp_path / 'a.jpg').size == (2, 4)


def test_the_picture_seen_is_the_input():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    pixels = torch.rand(3, 20, 20)
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    picture = np.asarray(seen(normalised, mean, std))
    assert picture.shape == (320, 320, 3)
    np.testing.assert_allclose(picture[::16, ::16].transpose(2, 0, 1) / 255, pixels, atol=0.5 / 255 + 1e-6)


def test_red_speaks_for_and_blue_against():
    evidence = torch.zeros(20, 20)
    evidence[:5, :5], evidence[15:, 15:] = 1, -1
    picture = np.asarray(coloured(Image.new('RGB', (320, 320), (99, 99, 99)), evidence))
    assert (picture[10, 10] == (255, 0, 0)).all()
    assert (picture[310, 310] == (0, 0, 255)).all()
    assert (picture[160, 160] == 99).all()


def test_answers_at_the_same_time_are_those_of_one_after_the_other(tmp_path):
    pictures = [str(photograph(tmp_path / f'{index}.png', (90, 60 + 10 * index))) for index in range(4)]
    alone = [classify(picture, NAME) for picture in pictures]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda picture: classify(picture, NAME), pictures * 3))
    for ours, expected in zip(together, alone * 3):
        assert ours[:3] == expected[:3]
        assert all(ours[index].tobytes() == expected[index].tobytes() for index in (3, 4))


def test_classes_of_one_name_are_kept_apart():
    model = timm.create_model('test_dit_resnet', num_classes=3)
    model.pretrained_cfg['label_names'] = ('crane', 'tench', 'crane')
    assert class_names(model) == ['crane (0)', 'tench', 'crane (2)']


def test_a_term_that_is_not_trained():
    nothing = Explained(torch.tensor([0.1, 0.9]), torch.tensor([0.1, 0.9]), torch.zeros(4, 4))
    assert sentence(nothing, ['no', 'yes']) == '**yes**. The quadratic term adds nothing: it is not trained.'


def test_an_answer_that_changes():
    changed = Explained(torch.tensor([0.1, 0.9]), torch.tensor([0.75, 0.25]), torch.ones(4, 4))
    assert sentence(changed, ['no', 'yes']) == (
        '**yes**, 90.0 %. Without the quadratic term it would be **no**, 75.0 %.'
    )


@pytest.mark.parametrize('name, message', [
    ('dit_resnet20.nothing', 'has no pretrained weights'),
    ('nobody', "timm.list_pretrained('dit_*') lists all"),
])
def test_a_network_that_is_not_there(name, message, capsys):
    assert command_line.main(['page', '--models', name]) == 1
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        assert command_line.main(['page', '--models', 'dit_resnet20', '--port', str(taken.getsockname()[1])]) == 1
    assert 'Here: --port and --host.' in capsys.readouterr().err


def test_without_gradio_the_page_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    monkeypatch.delitem(sys.modules, 'hub.page')
    assert command_line.main(['page']) == 1
    assert "needs gradio: pip install '.[space]'" in capsys.readouterr().err


@pytest.fixture(scope='module')
def address():
    """The page, served by its command without network."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    proxies = {name: 'http://127.0.0.1:9' for name in ('http_proxy', 'https_proxy')}
    process = subprocess.Popen(
        [sys.executable, '-m', 'hub', 'page', '--port', str(port)], cwd=ROOT,
        env={**os.environ, **proxies, 'no_proxy': '127.0.0.1,localhost', 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    url = f'http://127.0.0.1:{port}/'
    try:
        for _ in range(600):
            assert process.poll() is None, process.stdout.read()
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5)
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        yield url
    finally:
        process.kill()
        output = process.communicate()[0]
    assert 'Traceback' not in output, output


@pytest.fixture(scope='module')
def browser():
    executable = shutil.which('chromium') or shutil.which('google-chrome')
    if executable is None:
        pytest.skip('needs Chromium')
    sync_api = pytest.importorskip('playwright.sync_api')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[
            '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
            '--disable-component-update', '--disable-sync',
        ])
        yield browser
        browser.close()


@pytest.fixture
def opened(address, browser):
    page = browser.new_page(viewport={'width': 1200, 'height': 900})
    page.set_default_timeout(120_000)
    # Fonts and the like from elsewhere: the page does without.
    page.route('**/*', lambda route: (
        route.continue_() if route.request.url.startswith((address, 'data:', 'blob:')) else route.abort()
    ))
    page.goto(address)
    page.get_by_role('button', name='Classify').wait_for()
    yield page
    page.close()


def upload(page, path):
    page.locator('input[type=file]').first.set_input_files(path)


def test_upload_click_answer(opened, tmp_path):
    upload(opened, photograph(tmp_path / 'a.png'))
    opened.locator('#photograph img').wait_for()
    opened.get_by_role('button', name='Classify').click()
    for name in ('view', 'evidence'):
        opened.locator(f'#{name} img').wait_for(timeout=60_000)
    expected = classify(str(tmp_path / 'a.png'), NAME)[0].replace('**', '')
    assert expected in opened.inner_text('body')
    folder = os.environ.get('DIT_TIMM_SCREENSHOTS')
    if folder:
        opened.screenshot(path=Path(folder) / 'page.png', full_page=True)


@pytest.mark.parametrize('make, message', [
    (huge, 'at most 50 million pixels'),
    (truncated, 'ends too early or is damaged'),
    (no_picture, 'no picture that can be read'),
])
def test_bad_uploads_get_a_message_in_the_browser(opened, tmp_path, make, message):
    upload(opened, make(tmp_path / 'a.png'))
    opened.wait_for_timeout(1000)
    opened.get_by_role('button', name='Classify').click()
    opened.get_by_text(message, exact=False).first.wait_for(timeout=60_000)
    assert 'Traceback' not in opened.inner_text('body')


@pytest.mark.parametrize('route', ['gradio_api/run/classify', 'gradio_api/call/classify'])
def test_files_that_were_not_uploaded_are_not_read(address, tmp_path, route):
    secret = photograph(tmp_path / 'secret.png')
    for path in (secret, tmp_path / 'nothing', '/dev/zero', 'http://127.0.0.1:9/a.png'):
        data = json.dumps({'data': [{'path': str(path)}, NAME]}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(address + route, data, {'Content-Type': 'application/json'})
        try:
            answer = opener.open(request, timeout=60).read().decode()
            if 'call' in route:
                event = json.loads(answer)['event_id']
                answer = opener.open(f'{address}{route}/{event}', timeout=60).read().decode()
        except urllib.error.HTTPError as error:
            answer = error.read().decode()
        assert 'This file was not uploaded' in answer or 'event: error' in answer, answer
        assert 'probabilit' not in answer and '.webp' not in answer


def test_a_file_that_is_too_large_gets_a_message_in_the_browser(opened, tmp_path):
    path = tmp_path / 'a.png'
    path.write_bytes(bytes((20 << 20) + 1))
    upload(opened, path)
    opened.get_by_text('maximum', exact=False).first.wait_for(timeout=60_000)
