"""A run that was stopped, in whatever way, ends with the weights of one that was not."""

import csv
import hashlib
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dit_timm.cli import train
from dit_timm.errors import DamagedFileError
from dit_timm.files import write_file
from dit_timm.pretrained.weight_files import digest, load_weights, read_weights, weights_bytes
from dit_timm.training import fit, steps
from dit_timm.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.slow

# Everything that has a state: momentum, averaged weights, dropped paths, mixed and erased images, accumulation.
OPTIONS = [
    '--model', 'test_dit_convnext', '--img-size', '32', '--batch-size', '4', '--workers', '0', '--lr', '0.01',
    '--epochs', '3', '--warmup-epochs', '1', '--sched-on-updates', '--quadratic-lr-scale', '10', '--model-ema',
    '--drop-path', '0.2', '--drop', '0.1', '--mixup', '0.2', '--cutmix', '1', '--reprob', '0.3',
    '--grad-accum-steps', '2', '--aa', 'rand-m9-mstd0.5', '--val-fraction', '0.25',
    '--test-split', 'validation', '--checkpoint-interval', '1',
]


@pytest.fixture
def image_folder(write_greys):
    return write_greys(train=(12, 12, 12), validation=(3, 3, 3))


def run(image_folder, name, *options):
    output = image_folder.parent / 'out'
    train.main(['--data-dir', str(image_folder), '--output', str(output), '--experiment', name, *OPTIONS, *options])
    return output / name


def without_times(path):
    with path.open() as file:
        return [{key: value for key, value in row.items() if key != 'seconds'} for row in csv.DictReader(file)]


def contents(path):
    """The tensors of a file of weights, by their digest, and what else it says."""
    with safe_open(path, framework='pt') as file:
        return digest(load_file(path)), file.metadata()


def assert_same_end(folder, whole):
    ours, theirs = load_checkpoint(folder), load_checkpoint(whole)
    assert ours.path.name == theirs.path.name
    for name in ('model', 'ema'):
        for key, value in theirs.weights[name].items():
            assert torch.equal(ours.weights[name][key], value), (name, key)
    assert contents(folder / 'model.safetensors') == contents(whole / 'model.safetensors')
    for name in ('summary.csv', 'results.csv'):
        assert without_times(folder / name) == without_times(whole / name)


def test_killed_runs_end_with_the_same_weights(image_folder, tmp_path):
    process = subprocess.run(
        [sys.executable, str(Path(__file__).with_name('kill_runs.py')), str(tmp_path / 'out'), '20',
         '--data-dir', str(image_folder), *OPTIONS],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}, capture_output=True, text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count('killed killed-') >= 20
    assert 'checkpoints' not in process.stdout and "['0" in process.stdout, 'no kill left a checkpoint behind'
    runs = sorted((tmp_path / 'out').glob('killed-*'))
    assert runs
    for folder in runs:
        assert_same_end(folder, tmp_path / 'out' / 'whole')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(image_folder, capsys, monkeypatch, number):
    whole = run(image_folder, 'whole')
    step, calls = steps.Steps.step, []

    def stepping(self, *args):
        calls.append(1)
        if len(calls) == 9:
            os.kill(os.getpid(), number)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(steps.Steps, 'step', stepping)
        # Each look at this clock takes a thousand seconds.
        patch.setattr(fit, 'time', SimpleNamespace(
            perf_counter=itertools.count(0, 1000).__next__, monotonic=time.monotonic,
        ))
        with pytest.raises(SystemExit) as stopped:
            run(image_folder, 'stopped', '--checkpoint-interval', '1000')
    folder = image_folder.parent / 'out' / 'stopped'
    assert stopped.value.code == 130
    assert f'{number.name}: stopped. Go on with --resume {folder}' in capsys.readouterr().out
    # In the middle of the second epoch, at an update, which takes two batches.
    assert list_checkpoints(folder)[-1].name == '000001-00000004'
    train.main(['--resume', str(folder)])
    assert_same_end(folder, whole)
    # What the epoch had taken before counts.
    with (folder / 'summary.csv').open() as file:
        assert 1000 < float(list(csv.DictReader(file))[1]['seconds']) < 2000


def test_what_lies_beside_checkpoints_is_none(image_folder):
    whole = run(image_folder, 'whole')
    folder = run(image_folder, 'other', '--epochs', '3')
    last = list_checkpoints(folder)[-1]
    (last.parent / '.DS_Store').write_bytes(b'')
    (last.parent / 'Thumbs.db').write_bytes(b'')
    (last.parent / '@eaDir').mkdir()
    assert list_checkpoints(folder)[-1] == last
    shutil.rmtree(last)
    train.main(['--resume', str(folder)])
    assert_same_end(folder, whole)
    assert (last.parent / 'Thumbs.db').exists()


def test_the_number_of_workers_does_not_matter(image_folder):
    whole = run(image_folder, 'whole')
    assert_same_end(run(image_folder, 'workers', '--workers', '2'), whole)


def test_what_a_run_is_may_not_change(image_folder, capsys):
    folder = run(image_folder, 'whole', '--epochs', '1')
    with pytest.raises(SystemExit):
        train.main(['--resume', str(folder), '--lr', '0.5', '--epochs', '7'])
    message = capsys.readouterr().err
    assert '--lr is 0.01, not 0.5' in message and '--epochs is 1, not 7' in message
    with pytest.raises(SystemExit):
        train.main(['--resume', str(folder / 'nothing')])
    assert 'nothing is no folder of a run' in capsys.readouterr().err


def test_a_full_disk_leaves_the_last_checkpoint(image_folder, monkeypatch):
    replace, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) > 40:
            raise OSError(28, 'No space left on device')
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', full)
        with pytest.raises(SystemExit, match='^error: .*No space left.*is whole. Go on with --resume'):
            run(image_folder, 'full')
    folder = image_folder.parent / 'out' / 'full'
    assert not (folder / 'checkpoints' / 'unfinished').exists()
    before = load_checkpoint(folder).path.name
    assert before > '000000'
    train.main(['--resume', str(folder)])
    assert_same_end(folder, run(image_folder, 'whole'))


def test_a_real_limit_of_the_file_size_is_an_error_of_the_save(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    save_checkpoint(tmp_path, 0, 0, {'model': {'a': torch.zeros(10)}}, {})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError):
            save_checkpoint(tmp_path, 0, 1, {'model': {'a': torch.zeros(100_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_checkpoint(tmp_path).path.name == '000000-00000000'


def test_a_folder_that_takes_no_file_is_an_error_before_training(image_folder, monkeypatch):
    (image_folder.parent / 'out').write_text('a file')
    monkeypatch.setattr(steps.Steps, 'step', None)
    with pytest.raises(SystemExit, match='^error: .*out'):
        run(image_folder, 'never')


def test_two_checkpoints_are_kept_and_loaded_whole(tmp_path):
    for batch in range(4):
        save_checkpoint(tmp_path, 0, batch, {'model': {'a': torch.full((2,), float(batch))}}, {'batch': batch})
    assert [path.name for path in list_checkpoints(tmp_path)] == ['000000-00000002', '000000-00000003']
    loaded = load_checkpoint(tmp_path)
    assert loaded.state == {'batch': 3} and loaded.weights['model']['a'].tolist() == [3, 3]


class Bomb:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, 'executed')


def mutated(content, rng):
    """A file's content after an accident."""
    content = bytearray(content)
    kind = rng.choice(('cut', 'flip', 'flip', 'zeros', 'more'))
    if kind == 'cut':
        return bytes(content[:rng.randrange(len(content))])
    if kind == 'more':
        return bytes(content) + rng.randbytes(rng.randint(1, 64))
    start = rng.randrange(len(content))
    if kind == 'zeros':
        stop = min(len(content), start + rng.randint(1, 512))
        content[start:stop] = bytes(stop - start)
    else:
        content[start] ^= 1 << rng.randrange(8)
    return bytes(content)


def test_damaged_checkpoints_are_refused_or_whole(tmp_path):
    model = timm.create_model('test_dit_resnet')
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {'optimizer': optimizer.state_dict(), 'epoch': 3, 'history': [{'epoch': 0, 'loss': 1.5}]}
    path = save_checkpoint(tmp_path, 3, 0, {'model': model.state_dict(), 'ema': model.state_dict()}, state)
    truth = load_checkpoint(tmp_path)
    rng, refused = random.Random(0), 0
    for _ in range(60):
        file = path / rng.choice(sorted(file.name for file in path.iterdir()))
        content = file.read_bytes()
        file.write_bytes(mutated(content, rng))
        try:
            loaded = load_checkpoint(tmp_path)
        except DamagedFileError as error:
            assert str(path) in str(error) and 'Remove the folder' in str(error)
            refused += 1
        else:
            assert loaded.state == truth.state
            assert digest(loaded.weights['model']) == digest(truth.weights['model'])
        file.write_bytes(content)
    assert refused > 50


def test_damaged_weights_are_refused_or_whole(tmp_path):
    model = timm.create_model('test_dit_resnet')
    truth, path = model.state_dict(), tmp_path / 'model.safetensors'
    content = weights_bytes(truth, {'model': 'test_dit_resnet'})
    rng, refused = random.Random(1), 0
    for _ in range(40):
        path.write_bytes(mutated(content, rng))
        try:
            load_weights(model, read_weights(path), path)
        except DamagedFileError as error:
            assert str(path) in str(error)
            refused += 1
        assert digest(model.state_dict()) == digest(truth), 'other weights, or half of them'
    assert refused > 30


@pytest.mark.parametrize('change, message', [
    (lambda weights: weights.pop('fc.weight'), 'missing: fc.weight'),
    (lambda weights: weights.update(more=torch.zeros(1)), 'unknown: more'),
    (lambda weights: weights.update({'fc.bias': torch.zeros(7)}), r'fc.bias is \(7,\)'),
])
def test_weights_of_another_network_are_refused_whole(tmp_path, change, message):
    model = timm.create_model('test_dit_resnet')
    before = digest(model.state_dict())
    weights = {key: value + 1 for key, value in model.state_dict().items()}
    change(weights)
    save_file(weights, tmp_path / 'other.safetensors')
    with pytest.raises(DamagedFileError, match=message):
        load_weights(model, read_weights(tmp_path / 'other.safetensors'), tmp_path / 'other.safetensors')
    assert digest(model.state_dict()) == before


def test_code_in_a_pickle_is_not_executed(tmp_path):
    path = save_checkpoint(tmp_path, 0, 0, {'model': {'a': torch.zeros(2)}}, {'epoch': 0})
    bomb = pickle.dumps(Bomb(tmp_path / 'executed'))
    for name in ('state.pt', 'model.safetensors'):
        # As somebody would who means it: with the right sum.
        content, manifest = (path / name).read_bytes(), (path / 'files.json').read_text()
        (path / name).write_bytes(bomb)
        sums = {**json.loads(manifest), name: hashlib.sha256(bomb).hexdigest()}
        (path / 'files.json').write_text(json.dumps(sums))
        with pytest.raises(DamagedFileError):
            load_checkpoint(tmp_path)
        (path / name).write_bytes(content)
        (path / 'files.json').write_text(manifest)
    load_checkpoint(tmp_path)
    assert not (tmp_path / 'executed').exists()
    pickle.loads(bomb)
    assert (tmp_path / 'executed').exists(), 'the test would see it'


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    write_file(path, b'before')

    def fail(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError):
        write_file(path, b'after')
    assert path.read_bytes() == b'before' and list(tmp_path.iterdir()) == [path]




def test_a_run_that_goes_on_fetches_no_pretrained_weights(image_folder, capsys, monkeypatch):
    folder = run(image_folder, 'run', '--epochs', '1')
    options = (folder / 'args.yaml').read_text()
    (folder / 'args.yaml').write_text(options.replace('pretrained: false', 'pretrained: true'))
    create_model, asked = timm.create_model, []

    def creating(name, pretrained=False, **kwargs):
        asked.append(pretrained)
        return create_model(name, **kwargs)

    monkeypatch.setattr(timm, 'create_model', creating)
    capsys.readouterr()
    train.main(['--resume', str(folder)])
    assert asked == [False]
    assert 'The run has ended: only its results are written again.' in capsys.readouterr().out


@pytest.mark.parametrize('method', ['save', 'finish'])
def test_ctrl_c_while_nothing_is_trained(image_folder, capsys, monkeypatch, method):
    whole = run(image_folder, 'whole', '--epochs', '1')

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit, method, interrupted)
        with pytest.raises(SystemExit) as stopped:
            run(image_folder, 'stopped', '--epochs', '1')
    folder = image_folder.parent / 'out' / 'stopped'
    assert stopped.value.code == 130
    assert f'SIGINT: stopped. Go on with --resume {folder}' in capsys.readouterr().out
    train.main(['--resume', str(folder)])
    assert_same_end(folder, whole)
