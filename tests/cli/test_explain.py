"""The page of a network: the numbers of validate.py, and what the CSVs say."""

import csv

import pytest

from dit_timm.cli import explain, train, validate


@pytest.fixture
def trained(write_greys, tmp_path):
    data = write_greys(train=[6, 6, 6], test=[5, 4, 3])
    train.main([
        '--data-dir', str(data), '--model', 'test_dit_resnet', '--img-size', '32', '--batch-size', '6',
        '--workers', '0', '--epochs', '2', '--warmup-epochs', '0', '--lr', '0.05', '--val-split', 'test',
        '--test-split', 'test', '--device', 'cpu', '--output', str(tmp_path), '--experiment', 'run',
        '--quadratic-lr-scale', '10',
    ])
    return tmp_path / 'run'


def rows_of(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def test_page(trained, tmp_path, capsys):
    out = tmp_path / 'page'
    assert explain.main(['--checkpoint', str(trained), '--out', str(out), '--workers', '0']) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / 'README.md')
    page, classes = (out / 'README.md').read_text(), rows_of(out / 'classes.csv')
    assert [(row['class'], row['images']) for row in classes] == [('class0', '5'), ('class1', '4'), ('class2', '3')]
    for column, options in (('top1', []), ('without', ['--without-quadratic'])):
        args, = validate.parse_args(['--checkpoint', str(trained), '--workers', '0', *options])
        expected = validate.validate(args)['top1']
        mean = sum(float(row[column]) * int(row['images']) for row in classes) / 12
        assert mean == pytest.approx(expected, abs=1e-3)
        assert f'{expected:.2f} % {"with" if column == "top1" else "without"}' in page
    for name in ('spectrum', 'channels', 'patches'):
        assert f'(term0_{name}.png)' in page and (out / f'term0_{name}.png').stat().st_size > 1000
    outputs, pairs = rows_of(out / 'term0_outputs.csv'), rows_of(out / 'term0_pairs.csv')
    assert all(-1 <= float(row['agreement']) <= 1 for row in outputs)
    channels = sum(name.startswith('eigenvalue') for name in outputs[0])
    weights = [float(row['weight']) for row in pairs[:channels * (channels - 1) // 2]]
    assert weights == sorted(weights, reverse=True) and weights[-1] > 0


def test_a_network_without_a_term(trained, capsys, tmp_path):
    data = str(tmp_path / 'data')
    words = ['--pretrained', '--no-pretrained', '--model', 'test_resnet', '--data-dir', data, '--val-split', 'test']
    with pytest.raises(SystemExit):
        explain.main(words)
    assert 'name the weights' in capsys.readouterr().err
    plain = ['--checkpoint', str(trained), '--variant', 'plain', '--model', 'test_resnet', '--workers', '0']
    assert explain.main([*plain, '--out', str(tmp_path / 'page')]) == 1
    assert 'error: ' in capsys.readouterr().err
