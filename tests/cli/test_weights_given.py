"""Weights given to validate.py and predict.py: checkpoints of timm's train.py, single files, folders."""

import argparse
import csv

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3

from dit_timm.cli import predict, train, validate

# A part of what timm's train.py writes, with its defaults.
TIMM = {
    'model': 'test_dit_resnet', 'num_classes': 3, 'data_dir': None, 'dataset': '', 'train_split': 'train',
    'val_split': 'validation', 'img_size': 32, 'in_chans': None, 'input_size': None, 'mean': None, 'std': None,
    'interpolation': '', 'crop_pct': None, 'class_map': '', 'batch_size': 6, 'workers': 0, 'model_kwargs': {},
    'device': 'cuda', 'amp': False, 'amp_dtype': 'float16', 'channels_last': False, 'pretrained': True,
    'opt': 'sgd', 'model_ema': True, 'input_img_mode': None, 'dataset_download': False,
}


@pytest.fixture
def greys(write_greys):
    return write_greys(train=(4, 4, 4), validation=(3, 3, 3))


class Written:
    """A folder as timm's train.py leaves it, written by timm's own class."""

    def __init__(self, folder, **options):
        self.options = {**TIMM, **options}
        args = argparse.Namespace(**self.options)
        torch.manual_seed(0)
        self.model = timm.create_model(args.model, num_classes=args.num_classes or 1000).eval()
        self.averaged = ModelEmaV3(self.model)
        for module in (self.model, self.averaged):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        sum(parameter.sum() for parameter in self.model.parameters()).backward()
        optimizer.step()
        self.folder = folder
        folder.mkdir()
        saver = CheckpointSaver(
            self.model, optimizer, args=args, model_ema=self.averaged, checkpoint_dir=folder, recovery_dir=folder,
        )
        saver.save_checkpoint(0, metric=50.)
        (folder / 'args.yaml').write_text(yaml.safe_dump(self.options))


def loss_of(model, greys, size=32):
    """Of the validation images, without anything of the scripts."""
    config = timm.data.resolve_data_config({'img_size': size}, model=model)
    transform = timm.data.create_transform(**config)
    paths = sorted((greys / 'validation').rglob('*.png'))
    with torch.no_grad():
        logits = torch.cat([model.eval()(transform(Image.open(path).convert('RGB'))[None]) for path in paths])
    labels = torch.tensor([int(path.parent.name[-1]) for path in paths])
    return torch.nn.functional.cross_entropy(logits, labels).item()


def validated(tmp_path, *words):
    """The row of results."""
    results = tmp_path / 'results.csv'
    assert validate.main(['--results-file', str(results), *map(str, words)]) == 0
    with results.open() as file:
        row, = csv.DictReader(file)
    return row


@pytest.mark.parametrize('name', ['', 'last.pth.tar', 'model_best.pth.tar'])
@pytest.mark.parametrize('use_ema', [False, True])
def test_a_checkpoint_of_timm_s(greys, tmp_path, name, use_ema, capsys):
    run = Written(tmp_path / 'timm', data_dir=str(greys))
    words = ['--checkpoint', str(run.folder / name), *['--use-ema'] * use_ema]
    expected = run.averaged.module if use_ema else run.model
    row = validated(tmp_path, *words)
    assert float(row['loss']) == pytest.approx(loss_of(expected, greys), abs=1e-4)
    assert row['model'] == 'test_dit_resnet' and row['weights'].endswith(name or 'model_best.pth.tar')
    capsys.readouterr()
    image = greys / 'validation' / 'class1' / '0.png'
    assert predict.main([str(image), *words, '--topk', '3']) == 0
    transform = timm.data.create_transform(**timm.data.resolve_data_config({'img_size': 32}, model=expected))
    with torch.no_grad():
        shares = expected(transform(Image.open(image))[None]).softmax(1)[0].tolist()
    printed = capsys.readouterr().out
    assert all(f'{100 * share:.2f} %' in printed for share in shares)


def test_a_checkpoint_of_timm_s_alone_has_its_options_in_it(greys, tmp_path):
    run = Written(tmp_path / 'timm', data_dir=str(greys))
    (run.folder / 'args.yaml').unlink()
    row = validated(tmp_path, '--checkpoint', run.folder / 'last.pth.tar')
    assert float(row['loss']) == pytest.approx(loss_of(run.model, greys), abs=1e-4)


def test_classes_that_timm_did_not_write_down_are_those_of_the_last_layer(greys, tmp_path, capsys):
    # timm writes none where train.py got none, and the network has those of its own.
    run = Written(tmp_path / 'timm', data_dir=str(greys), num_classes=None)
    assert validate.main(['--checkpoint', str(run.folder)]) == 1
    assert 'test_dit_resnet has 1000 classes, but the data have 3' in capsys.readouterr().err


@pytest.mark.parametrize('wrap', [lambda state: state, lambda state: {'state_dict': state},
                                  lambda state: {'model': {f'_orig_mod.module.{key}': state[key] for key in state}}])
def test_other_files_of_weights(greys, tmp_path, wrap):
    model = timm.create_model('test_dit_resnet', num_classes=3)
    torch.save(wrap(model.state_dict()), tmp_path / 'weights.pth')
    row = validated(
        tmp_path, '--checkpoint', tmp_path / 'weights.pth', '--model', 'test_dit_resnet', '--img-size', '32',
        '--data-dir', greys, '--workers', '0',
    )
    assert float(row['loss']) == pytest.approx(loss_of(model, greys), abs=1e-4)


class Harmful:
    def __reduce__(self):
        return exec, ('raise AssertionError("code was run")',)


@pytest.mark.parametrize('write, message', [
    (lambda path: torch.save({'state_dict': {}, 'metric': Harmful()}, path),
     'holds Python objects beside tensors, such as exec, and'),
    (lambda path: path.write_bytes(b'no checkpoint'), 'is no whole file of torch.save'),
    (lambda path: path.write_bytes(b''), 'is no whole file of torch.save'),
    (lambda path: (torch.save({'a': torch.zeros(99)}, path), path.write_bytes(path.read_bytes()[:-400])),
     'is no whole file of torch.save'),
    (lambda path: torch.save([torch.zeros(1)], path), 'holds a list, and no weights by name'),
    (lambda path: torch.save({'epoch': 3, 'metric': 1.}, path), 'has no weights: it holds epoch, metric'),
    (lambda path: torch.save(timm.create_model('test_resnet').state_dict(), path), 'does not fit the network; missing'),
])
def test_a_file_that_cannot_be_used_is_one_line(greys, tmp_path, capsys, write, message):
    path = tmp_path / 'last.pth.tar'
    write(path)
    words = ['--model', 'test_dit_resnet', '--data-dir', str(greys), '--workers', '0', '--img-size', '32']
    assert validate.main(['--checkpoint', str(path), *words]) == 1
    error = capsys.readouterr().err
    assert f'error: {path} {message}' in error and len(error.splitlines()) == 1


def test_averaged_weights_that_are_not_there(greys, tmp_path, capsys):
    path = tmp_path / 'weights.pth'
    torch.save({'state_dict': timm.create_model('test_dit_resnet').state_dict()}, path)
    assert validate.main(['--checkpoint', str(path), '--model', 'test_dit_resnet', '--use-ema']) == 1
    assert f'{path} has no averaged weights (state_dict_ema or model_ema)' in capsys.readouterr().err
    save_file({'a': torch.zeros(1)}, tmp_path / 'model.safetensors')
    with pytest.raises(SystemExit):
        validate.main(['--checkpoint', str(tmp_path / 'model.safetensors'), '--model', 'resnet18', '--use-ema'])
    assert '--use-ema is of checkpoints of timm' in capsys.readouterr().err


@pytest.mark.parametrize('options', [
    ['--img-size', '32'],
    ['--in-chans', '1', '--img-size', '32', '--mean', '0.4', '--std', '0.3', '--crop-pct', '0.8'],
    ['--model', 'dit_resnet20', '--img-size', '24', '--model-kwargs', 'quadratic=False'],
    ['--img-size', '32', '--variant', 'mlp'],
])
def test_a_single_file_of_ours_says_all_that_its_network_needs(greys, tmp_path, capsys, options):
    train.main([
        '--model', 'test_dit_resnet', '--data-dir', str(greys), '--batch-size', '6', '--workers', '0', '--epochs', '1',
        '--device', 'cpu', '--lr', '0.01', '--output', str(tmp_path), '--experiment', 'run', *options,
    ])
    with (tmp_path / 'run' / 'results.csv').open() as file:
        expected = next(csv.DictReader(file))
    alone = tmp_path / 'alone.safetensors'
    (tmp_path / 'run' / 'model.safetensors').rename(alone)
    row = validated(tmp_path, '--checkpoint', alone, '--data-dir', greys, '--workers', '0')
    assert float(row['loss']) == pytest.approx(float(expected['loss']), abs=1e-4)
    capsys.readouterr()
    assert predict.main([str(greys / 'validation' / 'class0' / '0.png'), '--checkpoint', str(alone)]) == 0
    printed = capsys.readouterr().out
    assert all(f' class{label} ' in printed for label in range(3))


def test_a_single_file_that_says_nothing(greys, tmp_path, capsys):
    model, path = timm.create_model('test_dit_resnet', num_classes=3), tmp_path / 'model.safetensors'
    save_file(model.state_dict(), path)
    for main, words in ((validate.main, []), (predict.main, [str(greys)])):
        with pytest.raises(SystemExit):
            main([*words, '--checkpoint', str(path)])
        error = capsys.readouterr().err
        assert f'{path} does not say which network its weights are of: add --model NAME' in error
        assert len(error.splitlines()) == 2
    row = validated(
        tmp_path, '--checkpoint', path, '--model', 'test_dit_resnet', '--img-size', '32', '--data-dir', greys,
        '--workers', '0',
    )
    assert float(row['loss']) == pytest.approx(loss_of(model, greys), abs=1e-4)


def test_a_folder_without_weights(tmp_path, capsys):
    with pytest.raises(SystemExit):
        validate.main(['--checkpoint', str(tmp_path)])
    error = capsys.readouterr().err
    assert f'{tmp_path} holds no weights: none of model.safetensors, model_best.pth.tar, last.pth.tar' in error
