"""`--model local-dir:FOLDER` and `hf-hub:OWNER/NAME` in the scripts: fine-tuning, evaluation, use, sweeps, export."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from fake_hub.client_code import output
from safetensors.torch import load_file

from dit_timm.cli import predict, train, validate
from dit_timm.training.model import build_model
from dit_timm.training.sweep import read_sweep
from hub import card
from hub.export import LicenseError, export
from hub.run import read_run

SMALL = ['--batch-size', '6', '--workers', '0', '--epochs', '1', '--device', 'cpu', '--lr', '0.01']


@pytest.fixture
def data(trained_run):
    return ['--data-dir', str(trained_run.parent / 'data')]


def tuned(exported, data, tmp_path, *options):
    """A run that began with an export."""
    words = [*data, *SMALL, '--val-split', 'test', '--test-split', 'test', '--output', str(tmp_path)]
    train.main([*words, '--experiment', 'tuned', '--model', f'local-dir:{exported}', *options])
    return tmp_path / 'tuned'


def test_evaluation_and_use_of_a_folder(exported, trained_run, data, tmp_path, capsys):
    results = tmp_path / 'results.csv'
    words = ['--pretrained', '--model', f'local-dir:{exported}', '--device', 'cpu']
    assert validate.main([*words, *data, '--val-split', 'test', '--results-file', str(results)]) == 0
    with results.open() as file, (trained_run / 'results.csv').open() as expected:
        assert float(next(csv.DictReader(file))['loss']) == pytest.approx(
            float(list(csv.DictReader(expected))[-1]['loss']), abs=1e-4)
    image = trained_run.parent / 'data' / 'test' / 'class1' / '0.png'
    capsys.readouterr()
    assert predict.main([*words, str(image)]) == 0
    of_folder = capsys.readouterr().out
    assert predict.main([str(image), '--checkpoint', str(trained_run)]) == 0
    assert capsys.readouterr().out == of_folder and 'class2' in of_folder


def test_a_run_begins_with_the_weights_of_a_folder_and_needs_it_no_more(
        exported, trained_run, data, tmp_path, monkeypatch):
    args = train.parse_args([*data, '--device', 'cpu', '--pretrained', '--model', f'local-dir:{exported}'])
    begun, weights = build_model(args).state_dict(), load_file(exported / 'model.safetensors')
    assert all(torch.equal(begun[name], weights[name]) for name in weights)
    monkeypatch.chdir(exported.parent)
    run = tuned(Path(exported.name), data, tmp_path, '--pretrained')
    options = yaml.safe_load((run / 'args.yaml').read_text())
    assert options['model'] == 'test_dit_resnet' and options['input_size'] == [3, 32, 32]
    assert options['pretrained_from'] == f'local-dir:{exported}'
    shutil.rmtree(exported)
    monkeypatch.chdir('/')
    assert validate.main(['--checkpoint', str(run)]) == 0
    train.main(['--resume', str(run)])


def test_an_export_keeps_the_licence_and_names_no_place(exported, data, tmp_path):
    run = read_run(tuned(exported, data, tmp_path, '--pretrained'))
    with pytest.raises(LicenseError, match='began with weights of test_dit_resnet.greys, licence mit'):
        export(run, tmp_path / 'out', 'again', 'apache-2.0')
    export(run, tmp_path / 'out', 'again')
    text = card.write_card(run, tmp_path / 'out', 'me/again', 'greys').read_text()
    assert 'Weights before training:** test_dit_resnet.greys\n' in text
    assert all(str(tmp_path).encode() not in path.read_bytes() for path in (tmp_path / 'out').iterdir())


def test_weights_that_are_not_asked_for_are_said_not_to_be_used(exported, data, tmp_path, capsys):
    tuned(exported, data, tmp_path)
    assert f'weights of local-dir:{exported} are not used: --pretrained begins with them' in capsys.readouterr().out


@pytest.mark.parametrize('break_it, message', [
    (lambda folder: (folder / 'config.json').unlink(), 'there is no .*config.json. Such a folder holds'),
    (lambda folder: (folder / 'config.json').write_text('{}'), 'config.json is not one of timm'),
    (lambda folder: (folder / 'config.json').write_text('[1'), 'config.json is not one of timm'),
    (lambda folder: (folder / 'config.json').write_text('{"architecture": "net"}'), "is a 'net', which neither"),
    (lambda folder: (folder / 'model.safetensors').unlink(), 'its weights cannot be loaded'),
])
def test_a_folder_that_is_none(exported, data, tmp_path, capsys, break_it, message):
    break_it(exported)
    with pytest.raises(SystemExit) as ended:
        tuned(exported, data, tmp_path, '--pretrained')
    printed = f'{capsys.readouterr().err}{ended.value}'
    assert f'error: local-dir:{exported}' in printed
    assert re.search(message, printed)


def test_the_plain_twin_has_no_weights_in_a_dit_network(exported, data, tmp_path):
    with pytest.raises(SystemExit, match='is a test_dit_resnet, and the network to train a test_resnet'):
        tuned(exported, data, tmp_path, '--pretrained', '--variant', 'plain')


def test_a_sweep_names_folders_from_where_it_is(exported, tmp_path):
    (tmp_path / 'recipe.yaml').write_text('epochs: 1\n')
    (tmp_path / 'sweep.yaml').write_text(json.dumps({
        'data': 'greys', 'recipe': 'recipe.yaml', 'options': {'pretrained': True},
        'runs': [{'models': [f'local-dir:{exported.name}'], 'variants': ['dit', 'frozen'], 'seeds': [0]}],
    }))
    runs = read_sweep(tmp_path / 'sweep.yaml').runs
    assert {run.model for run in runs} == {f'local-dir:{exported}'}
    assert [run.name for run in runs] == ['export-dit-s0', 'export-frozen-s0']


SCRIPTS = '''
    import sys
    from dit_timm.cli import predict, train, validate

    data, output, *images = sys.argv[1:]
    words = ['--data-dir', data, '--batch-size', '6', '--workers', '0', '--device', 'cpu', '--val-split', 'test']
    name = ['--pretrained', '--model', 'hf-hub:me/greys']
    train.main([*words, *name, '--epochs', '1', '--test-split', 'test', '--output', output, '--experiment', 'run'])
    assert validate.main([*words, *name]) == 0
    assert predict.main([*images, *name, '--device', 'cpu', '--topk', '3']) == 0
    print('done')
'''
MISSING = '''
    from dit_timm.cli import train
    train.main(['--model', 'hf-hub:me/nothing', '--data-dir', '.'])
'''


@pytest.mark.slow
def test_repositories_on_the_hub(published, trained_run, client, tmp_path):
    data, root = trained_run.parent / 'data', Path(__file__).parents[2]
    paths = dict(PYTHONPATH=root)
    assert output(client(
        published, SCRIPTS, data, tmp_path / 'out', data / 'test' / 'class0' / '0.png', **paths,
    )) == 'done'
    options = yaml.safe_load((tmp_path / 'out' / 'run' / 'args.yaml').read_text())
    assert options['model'] == 'test_dit_resnet' and options['pretrained_from'] == 'hf-hub:me/greys'
    ended = client(published, MISSING, **paths)
    assert ended.returncode == 2 and 'error: hf-hub:me/nothing: ' in ended.stderr
    assert 'no such repository' in ended.stderr and 'Traceback' not in ended.stderr
