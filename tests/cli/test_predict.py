"""scripts/predict.py, and the tables and pictures of scripts/validate.py."""

import csv
import functools
import http.server
import re
import threading

import pytest
import timm
import torch
from PIL import Image

from dit_timm import ChannelQuadratic2d
from dit_timm.cli import predict, train, validate
from dit_timm.config.parts import ModelConfig
from dit_timm.errors import UserError
from dit_timm.training.confusion import Confusion

NAMES = ('dark', 'grey', 'light')


@pytest.fixture
def trained(write_greys, tmp_path):
    """A folder of images of three classes, and a run trained on it."""
    data = write_greys(train=(6, 6, 6), validation=(6, 6, 6))
    for split in ('train', 'validation'):
        for number, name in enumerate(NAMES):
            (data / split / f'class{number}').rename(data / split / name)
    train.main([
        '--data-dir', str(data), '--model', 'test_dit_convnext', '--img-size', '32', '--batch-size', '6',
        '--workers', '0', '--opt', 'adamw', '--lr', '0.003', '--epochs', '4', '--warmup-epochs', '0', '--output',
        str(tmp_path / 'out'), '--experiment', 'run', '--no-aug',
    ])
    return data, tmp_path / 'out' / 'run'


def test_a_folder_a_file_and_a_url(trained, capsys):
    data, run = trained
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(data))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/validation/dark/0.png'
        predict.main([
            str(data / 'validation' / 'light'), str(data / 'validation' / 'grey' / '1.png'), url,
            '--checkpoint', str(run), '--topk', '2',
        ])
        server.shutdown()
    printed = capsys.readouterr().out
    # Names are of the run; eight images with two classes each.
    assert sum(printed.count(f' {name} ') for name in NAMES) == 16
    assert printed.count('%') == 24


@pytest.mark.parametrize('name', ['test_dit_convnext', 'dit_resnet20'])
def test_the_quadratic_share_is_what_is_lost_without_the_term(name):
    model = timm.create_model(name, num_classes=5).eval()
    terms = [module for module in model.modules() if isinstance(module, ChannelQuadratic2d)]
    for module in terms:
        torch.nn.init.normal_(module.weight, std=0.1)
    args = options_of_nothing()
    image = torch.randn(3, 32, 32)
    prediction = predict.predict(model, image, args, topk=9)
    with torch.no_grad():
        full = model(image[None])[0]
        for module in terms:
            module.weight.zero_()
        rest = model(image[None])[0]
    first = int(full.argmax())
    evidence = full[first] - full.mean()
    lost = evidence - (rest[first] - rest.mean())
    assert prediction.classes == full.argsort(descending=True).tolist()
    assert prediction.probabilities == pytest.approx(sorted(full.softmax(0).tolist(), reverse=True))
    assert prediction.quadratic_share == pytest.approx((lost / evidence).item(), rel=1e-3, abs=1e-6)
    assert predict.predict(model, image, args, topk=1).quadratic_share == 0


def test_a_network_without_terms_has_no_share():
    model = timm.create_model('test_resnet', num_classes=3).eval()
    assert predict.predict(model, torch.randn(3, 32, 32), options_of_nothing(), 1).quadratic_share is None


def options_of_nothing():
    return ModelConfig(amp=False, device='cpu')


@pytest.mark.parametrize('make, message', [
    (lambda path: path.write_bytes(b'no image'), 'cannot be read as an image'),
    (lambda path: path.mkdir(), 'holds no image'),
    (lambda path: None, 'no file, no folder and no URL'),
])
def test_what_is_no_image_is_named(tmp_path, make, message):
    path = tmp_path / 'thing.png'
    make(path)
    with pytest.raises(UserError, match=f'thing.png.*{message}'):
        [predict.read_image(name) for name in predict.find_images([str(path)])]


def test_a_url_that_answers_nothing_is_named():
    with pytest.raises(UserError, match='http://127.0.0.1:9/x.png cannot be had'):
        predict.read_image('http://127.0.0.1:9/x.png')


def test_tables_and_picture_of_an_evaluation(trained, tmp_path, capsys):
    data, run = trained
    files = {name: tmp_path / name for name in ('results.csv', 'classes.csv', 'confusion.png')}
    validate.main([
        '--checkpoint', str(run), '--results-file', str(files['results.csv']), '--per-class', str(files['classes.csv']),
        '--confusion', str(files['confusion.png']),
    ])
    top1 = float(capsys.readouterr().out.strip().splitlines()[-1].split()[0].removeprefix('top1='))
    with files['results.csv'].open() as file:
        row, = csv.DictReader(file)
    assert row['model'] == 'test_dit_convnext' and float(row['top1']) == pytest.approx(top1, abs=1e-3)
    assert float(row['top1_err']) == pytest.approx(100 - top1, abs=1e-3) and row['img_size'] == '32'
    with files['classes.csv'].open() as file:
        rows = list(csv.DictReader(file))
    assert [row['class'] for row in rows] == list(NAMES) and {row['images'] for row in rows} == {'6'}
    assert sum(float(row['top1']) for row in rows) / 3 == pytest.approx(top1, abs=1e-2)
    assert Image.open(files['confusion.png']).size[0] > 500


def test_larger_images_are_pooled_at_the_end(trained, tmp_path):
    _, run = trained
    results = tmp_path / 'results.csv'
    # Larger than the 160 pixels that the network says it is made for.
    words = ['--checkpoint', str(run), '--img-size', '192', '--results-file', str(results), '--workers', '0']
    rows = []
    for options in ([], ['--test-pool']):
        assert validate.main([*words, *options]) == 0
        with results.open() as file:
            rows += csv.DictReader(file)
    assert [row['img_size'] for row in rows] == ['192', '192'] and rows[1]['crop_pct'] == '1.0'
    assert rows[0]['loss'] != rows[1]['loss']


def test_confusion_counts():
    confusion = Confusion(3)
    confusion.update(torch.eye(3)[[0, 1, 1, 2]], torch.tensor([0, 1, 2, 2]))
    confusion.update(torch.eye(3)[[1]], torch.tensor([2]))
    assert confusion.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 2, 1]]
    assert confusion.per_class(['a', 'b', 'c'])[2] == {'class': 'c', 'images': 3, 'top1': 33.333, 'taken_for': 'b'}


def test_weights_must_be_named(capsys):
    with pytest.raises(SystemExit) as ended:
        predict.main(['x.png'])
    assert ended.value.code == 2
    assert 'error: name the weights: --checkpoint FILE or --pretrained.' in capsys.readouterr().err


def test_a_file_that_is_missing_does_not_stop_the_others(trained, tmp_path, capsys):
    data, run = trained
    names = [str(tmp_path / 'none.png'), str(data / 'validation' / 'light' / '0.png')]
    assert predict.main([*names, '--checkpoint', str(run), '--topk', '1']) == 1
    printed = capsys.readouterr()
    assert printed.out.count('%') == 2 and printed.err == f'error: {names[0]} is no file, no folder and no URL.\n'
    assert predict.main([names[0], '--checkpoint', str(run)]) == 1 and capsys.readouterr().out == ''


def test_an_image_that_cannot_be_read_does_not_stop_the_others(trained, capsys):
    data, run = trained
    (data / 'validation' / 'light' / '2.png').write_bytes(b'no image')
    assert predict.main([str(data / 'validation' / 'light'), '--checkpoint', str(run), '--topk', '1']) == 1
    printed = capsys.readouterr()
    assert re.findall(r'\w+', printed.out.splitlines()[1]) == ['image', 'class', 'probability', 'quadratic']
    # A probability and a share for each of the five others.
    assert printed.out.count('%') == 10 and 'light/2.png cannot be read as an image' in printed.err
