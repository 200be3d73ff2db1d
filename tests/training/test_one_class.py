"""One class: nothing to train, and something to evaluate."""

import csv

import pytest
import timm
from PIL import Image

from dit_timm.cli import predict, train, validate
from dit_timm.pretrained.weight_files import weights_bytes

WORDS = ['--model', 'test_dit_resnet', '--img-size', '32', '--batch-size', '2', '--workers', '0', '--device', 'cpu']


@pytest.mark.parametrize('options', [[], ['--num-classes', '1'], ['--num-classes', '3'], ['--bce-loss']])
def test_one_folder_is_refused(write_greys, tmp_path, options):
    root = write_greys(train=(4,), validation=(2,))
    with pytest.raises(SystemExit, match="^error: The training data have one class, 'class0': a network tells two or"):
        train.main(['--data-dir', str(root), *WORDS, '--output', str(tmp_path / 'out'), *options])
    assert not (tmp_path / 'out').exists()


def test_a_network_of_one_class_is_refused_for_more(write_greys, tmp_path):
    root = write_greys(train=(4, 4), validation=(2, 2))
    with pytest.raises(SystemExit, match='--num-classes is 1, but the training data have 2'):
        train.main(['--data-dir', str(root), *WORDS, '--output', str(tmp_path / 'out'), '--num-classes', '1'])


def test_a_network_of_one_class_is_evaluated_and_used(write_greys, tmp_path, capsys):
    root, path = write_greys(validation=(3,)), tmp_path / 'one.safetensors'
    path.write_bytes(weights_bytes(timm.create_model('test_dit_resnet', num_classes=1).state_dict()))
    files = {name: tmp_path / name for name in ('results.csv', 'classes.csv', 'confusion.png')}
    assert validate.main([
        '--checkpoint', str(path), '--data-dir', str(root), *WORDS, '--results-file', str(files['results.csv']),
        '--per-class', str(files['classes.csv']), '--confusion', str(files['confusion.png']),
    ]) == 0
    with files['results.csv'].open() as file:
        row, = csv.DictReader(file)
    assert (row['top1'], row['top5'], float(row['loss'])) == ('100.0', '100.0', 0)
    with files['classes.csv'].open() as file:
        assert list(csv.DictReader(file)) == [{'class': 'class0', 'images': '3', 'top1': '100.0', 'taken_for': ''}]
    assert Image.open(files['confusion.png']).size[0] > 500
    capsys.readouterr()
    assert predict.main([str(root / 'validation' / 'class0' / '0.png'), '--checkpoint', str(path), *WORDS[:4]]) == 0
    printed = capsys.readouterr().out
    assert '100.00 %' in printed and 'nan' not in printed
