"""scripts/validate.py on several networks, on some classes, by other labels and with other crops."""

import csv
import json

import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo

from dit_timm.cli import train, validate
from dit_timm.data.labels import SomeClasses, read_valid_labels

OPTIONS = ['--img-size', '32', '--batch-size', '6', '--workers', '0', '--device', 'cpu']


@pytest.fixture
def data(write_greys):
    return ['--data-dir', str(write_greys(train=(4, 4, 4), validation=(3, 3, 3)))]


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def top1(printed):
    return [line.split()[0] for line in printed.splitlines() if line.startswith('top1=')]


def test_several_runs_in_one_call(data, tmp_path, capsys):
    for name, model in (('one', 'test_dit_resnet'), ('two', 'test_dit_convnext')):
        output = ['--output', str(tmp_path), '--experiment', name]
        train.main([*data, *OPTIONS, '--model', model, '--epochs', '1', *output])
    trained = top1(capsys.readouterr().out)
    results = tmp_path / 'results.csv'
    runs = [str(tmp_path / name) for name in ('one', 'two')]
    assert validate.main(['--results-file', str(results), '--checkpoint', *runs]) == 0
    assert top1(capsys.readouterr().out) == trained
    assert [row['model'] for row in rows_of(results)] == ['test_dit_resnet', 'test_dit_convnext']


def test_one_that_cannot_be_evaluated_does_not_stop_the_others(data, tmp_path, capsys):
    train.main([*data, *OPTIONS, '--model', 'test_dit_resnet', '--epochs', '1', '--output', str(tmp_path),
                '--experiment', 'good'])
    damaged = tmp_path / 'damaged' / 'model.safetensors'
    damaged.parent.mkdir()
    damaged.write_bytes((tmp_path / 'good' / 'model.safetensors').read_bytes()[:-1])
    results = tmp_path / 'results.csv'
    capsys.readouterr()
    assert validate.main([
        *data, *OPTIONS, '--model', 'test_dit_resnet', '--results-file', str(results), '--checkpoint', str(damaged),
        str(tmp_path / 'good'),
    ]) == 1
    printed = capsys.readouterr()
    assert f'error: {damaged}' in printed.err and len(top1(printed.out)) == 1
    assert len(rows_of(results)) == 1


def test_a_pattern_without_pretrained_weights(capsys):
    with pytest.raises(SystemExit):
        validate.main(['--pretrained', '--model', 'dit_nothing*'])
    assert 'dit_nothing* fits no network with pretrained weights' in capsys.readouterr().err


@pytest.fixture
def network(monkeypatch):
    """A network of 1,000 classes in place of pretrained ones."""
    torch.manual_seed(0)
    model = timm.create_model('test_dit_resnet', num_classes=1000).eval()
    monkeypatch.setattr(validate, 'load_trained', lambda args: model)
    return model


def logits_of(network, data, **config):
    """Logits and labels, image by image, without anything of the scripts."""
    from pathlib import Path
    config = timm.data.resolve_data_config({'img_size': 32, **config}, model=network)
    transform = timm.data.create_transform(**config)
    paths = sorted((Path(data[1]) / 'validation').rglob('*.png'))
    with torch.no_grad():
        logits = torch.cat([network(transform(Image.open(path).convert('RGB'))[None]) for path in paths])
    return logits, torch.tensor([int(path.parent.name[-1]) for path in paths])


def test_valid_labels(network, data, tmp_path, capsys):
    classes = [3, 500, 999]
    (tmp_path / 'labels.txt').write_text('\n'.join(map(str, classes)))
    assert validate.main([*data, *OPTIONS, '--pretrained', '--valid-labels', str(tmp_path / 'labels.txt')]) == 0
    logits, labels = logits_of(network, data)
    right = (logits[:, classes].argmax(1) == labels).float().mean().item()
    assert top1(capsys.readouterr().out) == [f'top1={100 * right:.3f}']


@pytest.mark.parametrize('name, first', [('imagenet_a', 'n01498041'), ('imagenet_r', 'n01443537')])
def test_the_lists_of_imagenet_a_and_r(name, first):
    classes = read_valid_labels(name)
    # Both have 200 classes; the first folder of each is known from the data sets.
    assert len(classes) == 200 and classes == sorted(set(classes))
    assert ImageNetInfo().index_to_label_name(classes[0]) == first


def test_valid_labels_that_do_not_fit(tmp_path):
    with pytest.raises(OSError, match='nothing.txt is no file, and neither of imagenet_a, imagenet_r'):
        read_valid_labels('nothing.txt')
    (tmp_path / 'labels.txt').write_text('n01498041\n')
    with pytest.raises(ValueError, match='must hold the number of a class'):
        read_valid_labels(str(tmp_path / 'labels.txt'))
    with pytest.raises(ValueError, match='has classes 3 to 10; the network has 10'):
        SomeClasses(timm.create_model('test_dit_resnet', num_classes=10), [3, 10])


def test_real_labels(network, write_greys, tmp_path, capsys):
    folder = write_greys(validation=(3, 3, 3))
    # Named as ImageNet's are; the order of the numbers is not that of the folders.
    numbers = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    for number, path in zip(numbers, sorted(folder.rglob('*.png'))):
        path.rename(path.with_name(f'ILSVRC2012_val_{number + 1:08d}.png'))
    for path in folder.rglob('*.png'):
        path.rename(path.with_suffix('.JPEG'))
    data = ['--data-dir', str(folder)]
    paths = sorted(folder.rglob('*.JPEG'))
    config = timm.data.resolve_data_config({'img_size': 32}, model=network)
    transform = timm.data.create_transform(**config)
    with torch.no_grad():
        first = [int(network(transform(Image.open(path).convert('RGB'))[None]).argmax()) for path in paths]
    # One image in three without a label, one with the network's answer and another, one with another only.
    real, right = [None] * 9, []
    for index, (path, answer) in enumerate(zip(paths, first)):
        number = int(path.stem[-8:]) - 1
        real[number] = [[], [answer, (answer + 1) % 1000], [(answer + 1) % 1000]][index % 3]
        right += [[], [1], [0]][index % 3]
    (tmp_path / 'real.json').write_text(json.dumps(real))
    assert validate.main([*data, *OPTIONS, '--pretrained', '--real-labels', str(tmp_path / 'real.json')]) == 0
    printed = capsys.readouterr().out
    assert top1(printed) == [f'top1={100 * sum(right) / len(right):.3f}'] and 'by ReaL labels' in printed


def test_real_labels_need_the_images_of_imagenet(network, data, capsys):
    assert validate.main([*data, *OPTIONS, '--pretrained', '--real-labels']) == 1
    assert '50,000 images of ImageNet' in capsys.readouterr().err


def test_crops(network, write_greys, capsys):
    data = ['--data-dir', str(write_greys(validation=(3, 3, 3)))]
    classes = '--valid-labels', 'imagenet_a'
    for options, config in (
        (['--crop-mode', 'squash', '--crop-pct', '0.6'], {'crop_mode': 'squash', 'crop_pct': 0.6}),
        (['--crop-mode', 'center', '--crop-pct', '0.5'], {'crop_mode': 'center', 'crop_pct': 0.5}),
    ):
        assert validate.main([*data, *OPTIONS, '--pretrained', *classes, *options]) == 0
        logits, labels = logits_of(network, data, **config)
        loss = torch.nn.functional.cross_entropy(logits[:, read_valid_labels('imagenet_a')], labels)
        assert f'validation: 9 images, loss {loss:.4f}' in capsys.readouterr().out
