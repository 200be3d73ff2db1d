"""What the scripts print, whatever names there are and whatever letters the terminal has."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console

from dit_timm.cli import predict, sweep, train, validate
from dit_timm.training.confusion import Confusion

# To rich, markup and an emoji; to matplotlib, a formula that is none.
NAMES = ['[red]cat', '[/]', ':smile:', 'chat é', '$\\nothing$ 5$']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Data with such classes, and a run on them."""
    folder = tmp_path_factory.mktemp('run')
    for split in ('train', 'validation'):
        for label, name in enumerate(NAMES):
            # A class whose name is a path is none.
            images = folder / 'data' / split / name.replace('/', '\u2215')
            images.mkdir(parents=True)
            for index in range(3):
                Image.new('RGB', (32, 32), (40 * label + index,) * 3).save(images / f'[bold]{index} é.png')
    train.main([
        '--data-dir', str(folder / 'data'), '--model', 'test_dit_resnet', '--img-size', '32', '--batch-size', '4',
        '--workers', '0', '--epochs', '1', '--device', 'cpu', '--lr', '0.01', '--output', str(folder), '--experiment',
        'run',
    ])
    return folder


def classes():
    return [name.replace('/', '\u2215') for name in NAMES]


def test_names_are_printed_as_they_are(run, capsys):
    image = run / 'data' / 'train' / '[red]cat' / '[bold]0 é.png'
    assert predict.main([str(image), '--checkpoint', str(run / 'run')]) == 0
    printed = capsys.readouterr().out
    assert all(f' {name} ' in printed for name in classes())
    # However long: in as many lines as it takes, from the first column.
    lines = [line[1:].split(' ┃ ')[0].split(' │ ')[0].strip('│ ') for line in printed.splitlines()[3:]]
    assert str(image).replace(' ', '') in ''.join(lines).replace(' ', '')


def test_a_title_is_printed_as_it_is(capsys, monkeypatch):
    printed = []
    monkeypatch.setattr(Console, 'print', lambda self, table: printed.append(table.title.plain))
    run = SimpleNamespace(name='run', model='[m]', variant='dit', seed=0)
    runs = SimpleNamespace(
        sweep=SimpleNamespace(data='[red]data', path=SimpleNamespace(name='x.yaml'), runs=[run]),
        has_ended=lambda name: True,
        folder=lambda name: name,
        args=SimpleNamespace(output=Path('out')),
    )
    monkeypatch.setattr(sweep, 'result_on_test', lambda folder: {'top1': '5'})
    sweep.print_results(runs)
    assert printed[0].startswith('[red]data, x.yaml')


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp1251'])
def test_letters_that_a_terminal_lacks_are_replaced(run, monkeypatch, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.setattr(sys, 'stderr', err)
    image = run / 'data' / 'train' / 'chat é' / '[bold]0 é.png'
    assert predict.main([str(image), '--checkpoint', str(run / 'run')]) == 0
    assert predict.main([str(run / 'data' / 'é'), '--checkpoint', str(run / 'run')]) == 1
    assert validate.main(['--checkpoint', str(run / 'run'), '--val-split', 'é']) == 1
    out.flush(), err.flush()
    letter = 'é'.encode(encoding, errors='replace')
    printed, errors = out.buffer.getvalue(), err.buffer.getvalue()
    assert b'chat ' + letter in printed and b'[red]cat' in printed
    assert b'data/' + letter in errors and b"no split '" + letter in errors


def test_dollars_are_no_formula(tmp_path):
    Confusion(5).plot(NAMES, tmp_path / 'confusion.png')
    assert Image.open(tmp_path / 'confusion.png').size[0] > 500
