"""What a user can mend is one line; what is a bug keeps its traceback."""

import re

import pytest
import torch

from dit_timm.cli import predict, record, sweep, train, validate
from dit_timm.errors import DamagedFileError, InvalidInputError, MissingFileError, UserError, message_of
from dit_timm.pretrained.checked import NoWeightsError
from hub import __main__ as hub_commands
from hub.export import LicenseError

# A command, and where in it something goes wrong.
COMMANDS = {
    'train': (train, 'seeded_run', ['--data-dir', 'x', '--device', 'cpu']),
    'validate': (validate, 'validate', ['--pretrained', '--model', 'dit_resnet20']),
    'predict': (predict, 'load_trained', ['x.png', '--pretrained']),
    'sweep': (sweep, 'read_sweep', ['x.yaml', '--device', 'cpu']),
    'record': (record, 'rows_of', ['x', '--data', 'x']),
    'hub': (hub_commands, 'read_run', ['card', 'x', '--out', 'x', '--repo-id', 'me/x', '--data', 'x']),
}


def ended(name, monkeypatch, capsys, error):
    """What the command prints as an error when something in it raises one."""
    def fail(*args, **kwargs):
        raise error

    module, function, words = COMMANDS[name]
    monkeypatch.setattr(module, function, fail)
    try:
        assert module.main(words) == 1
    except SystemExit as stopped:
        return str(stopped.code)
    return capsys.readouterr().err


@pytest.mark.parametrize('name', COMMANDS)
@pytest.mark.parametrize('error', [
    ValueError('a bug'), RuntimeError('a bug'), KeyError('a bug'), TypeError('a bug'), AssertionError('a bug'),
    OSError('libnothing.so: cannot open shared object file'), ImportError('a bug'),
])
def test_a_bug_keeps_its_traceback(monkeypatch, capsys, name, error):
    with pytest.raises(type(error)) as raised:
        ended(name, monkeypatch, capsys, error)
    assert raised.value is error


@pytest.mark.parametrize('name', COMMANDS)
@pytest.mark.parametrize('error', [
    InvalidInputError('no such thing'), MissingFileError('no such thing'), DamagedFileError('no such thing'),
    PermissionError(13, 'no such thing', 'x.csv'), OSError(28, 'no such thing'),
])
def test_what_a_user_can_mend_is_one_line(monkeypatch, capsys, name, error):
    printed = ended(name, monkeypatch, capsys, error)
    assert printed.startswith('error: ') and 'no such thing' in printed and len(printed.splitlines()) == 1


def test_errors_are_pythons_too():
    assert issubclass(InvalidInputError, ValueError) and issubclass(MissingFileError, FileNotFoundError)
    assert issubclass(LicenseError, InvalidInputError) and issubclass(NoWeightsError, OSError)
    assert issubclass(DamagedFileError, UserError) and issubclass(NoWeightsError, UserError)


def test_the_message_of_an_error_of_a_loading_process():
    # As torch's DataLoader makes it.
    error = InvalidInputError(
        'Caught InvalidInputError in DataLoader worker process 0.\nTraceback ...\nx.InvalidInputError: a: b',
    )
    assert message_of(error) == 'a: b'


@pytest.mark.parametrize('words, message', [
    (['--device', 'nonsense'], '--device nonsense cannot be used: '),
    pytest.param(['--device', 'cuda'], '--device cuda cannot be used: CUDA is not available', marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason='there is a GPU')),
    (['--opt', 'adamw', '--opt-betas', '0.9', '1.5'], '--opt adamw refuses its options: Invalid beta parameter'),
    (['--lr', '-1'], '--opt sgd refuses its options: Invalid learning rate: -1'),
    (['--dataset', 'torch/nothing'], '--dataset torch/nothing cannot be opened: Unknown torchvision dataset nothing'),
    (['--dataset', 'torch/cifar10'], '--dataset torch/cifar10 cannot be opened: Dataset not found'),
    (['--model', 'resnet18', '--pretrained'], 'The weights of resnet18 cannot be had. '),
    (['--model', 'dit_resnet18', '--pretrained'], 'Cannot get the weights of dit_resnet18'),
    (['--model', 'resnet18.a1_in2k'],
     '--model resnet18.a1_in2k: there are no such weights of it. Near names: resnet18.a1'),
])
def test_words_of_timm_and_torch_are_said_in_ours(write_greys, tmp_path, monkeypatch, words, message):
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    root = write_greys(train=(4, 4), validation=(2, 2))
    with pytest.raises(SystemExit) as stopped:
        train.main([
            '--data-dir', str(root), '--batch-size', '4', '--workers', '0', '--device', 'cpu', '--epochs', '1',
            '--output', str(tmp_path / 'out'), *words,
        ])
    printed = str(stopped.value)
    assert re.match(f'error: {message}', printed) and len(printed.splitlines()) == 1
