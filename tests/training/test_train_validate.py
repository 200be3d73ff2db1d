"""scripts/train.py and scripts/validate.py, on images small enough for a test."""

import csv
import os
import platform
import tarfile
from pathlib import Path
from typing import Callable

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from dit_timm.cli import predict, train, validate
from dit_timm.data import digits
from dit_timm.data.splits import class_names, open_split
from dit_timm.training import model

SMALL = ['--model', 'test_dit_resnet', '--img-size', '32', '--batch-size', '8', '--workers', '0', '--lr', '0.01']


@pytest.fixture
def image_folder(write_greys: Callable[..., Path]) -> Path:
    """Six classes, each a shade of grey with noise: `train` with 8 images each, `validation` with 3."""
    return write_greys(step=40, train=(8,) * 6, validation=(3,) * 6)


def run(image_folder: Path, tmp_path: Path, *options: str) -> Path:
    """Train on the folder; returns the run's folder."""
    train.main(['--data-dir', str(image_folder), *SMALL, '--output', str(tmp_path / 'out'), *options])
    return max((tmp_path / 'out').iterdir(), key=lambda path: path.stat().st_mtime)


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out.strip().splitlines()[-1]


def numbers(line: str) -> list:
    """The top-1 and top-5 of a summary line, as printed."""
    return [field for field in line.split() if field.startswith(('top1=', 'top5='))]


@pytest.mark.parametrize('options', [[], ['--amp', '--channels-last', '--drop-path', '0.1']])
def test_validate_prints_the_numbers_of_the_run(image_folder, tmp_path, capsys, monkeypatch, options):
    # On any CPU: where it is slow, this is small.
    monkeypatch.setattr(model, 'has_bfloat16_kernels', lambda: True)
    folder = run(image_folder, tmp_path, '--epochs', '2', '--warmup-epochs', '0', *options)
    trained = last_line(capsys)
    assert trained.startswith('top1=') and f'model=test_dit_resnet weights={folder / "model.safetensors"}' in trained
    validate.main(['--checkpoint', str(folder)])
    assert numbers(last_line(capsys)) == numbers(trained)


def test_bfloat16_is_refused_where_it_would_be_slow(image_folder, tmp_path, capsys, monkeypatch):
    folder = run(image_folder, tmp_path, '--epochs', '1', '--device', 'cpu')
    options = yaml.safe_load((folder / 'args.yaml').read_text())
    (folder / 'args.yaml').write_text(yaml.safe_dump({**options, 'amp': True}))
    monkeypatch.setattr(model, 'has_bfloat16_kernels', lambda: False)
    image = str(next(image_folder.rglob('*.png')))
    with pytest.raises(SystemExit, match='--amp .*AVX-512.*--no-amp'):
        run(image_folder, tmp_path, '--device', 'cpu', '--amp')
    for command, arguments in (
            (validate, ['--checkpoint', str(folder)]),
            (predict, [image, '--checkpoint', str(folder)]),
    ):
        capsys.readouterr()
        assert command.main(arguments) == 1
        line, = capsys.readouterr().err.splitlines()
        assert '--amp' in line and 'AVX-512' in line and '--no-amp' in line
        assert command.main([*arguments, '--no-amp']) == 0


@pytest.mark.skipif(not Path('/proc/cpuinfo').exists() or platform.machine() != 'x86_64', reason='asks Linux on x86')
def test_which_cpus_have_bfloat16_kernels():
    flags = Path('/proc/cpuinfo').read_text()
    if 'avx_ne_convert' not in flags:
        assert model.has_bfloat16_kernels() == ('avx512bw' in flags)


@pytest.mark.parametrize('options, split', [
    (['--val-fraction', '0.25'], '0.25 of train: 12 images'),
    (['--val-fraction', '0.25', '--test-split', 'validation'], 'validation: 18 images'),
])
def test_validate_prints_the_last_numbers_of_a_run_with_images_held_out(image_folder, tmp_path, capsys, options, split):
    folder = run(image_folder, tmp_path, '--epochs', '2', '--warmup-epochs', '0', *options)
    trained = last_line(capsys)
    results = tmp_path / 'results.csv'
    assert validate.main(['--checkpoint', str(folder), '--results-file', str(results)]) == 0
    printed = capsys.readouterr().out
    assert split in printed and numbers(printed.strip().splitlines()[-1]) == numbers(trained)
    with results.open() as file:
        row, = csv.DictReader(file)
    assert row['weights'] == str(folder / 'model.safetensors') and row['split'] == split.partition(':')[0]
    with (folder / 'results.csv').open() as file:
        assert float(row['loss']) == pytest.approx(float(list(csv.DictReader(file))[-1]['loss']), abs=1e-4)
    assert validate.main(['--checkpoint', str(folder), '--val-split', 'train']) == 0
    assert 'train: 48 images' in capsys.readouterr().out
    # Named for weights that do not say it, as train.py's options name them.
    alone = tmp_path / 'alone.safetensors'
    alone.write_bytes((folder / 'model.safetensors').read_bytes())
    data = ['--data-dir', str(image_folder), *SMALL[2:-2], '--val-fraction', '0.25', '--train-split', 'train']
    assert validate.main(['--checkpoint', str(alone), *data]) == 0
    printed = capsys.readouterr().out
    assert '0.25 of train: 12 images' in printed
    if len(options) == 2:
        assert numbers(printed.strip().splitlines()[-1]) == numbers(trained)


def test_weights_without_their_run_say_which_model_they_are(image_folder, tmp_path, capsys):
    folder = run(image_folder, tmp_path, '--epochs', '1', '--warmup-epochs', '0')
    trained = last_line(capsys)
    alone = tmp_path / 'alone.safetensors'
    alone.write_bytes((folder / 'model.safetensors').read_bytes())
    assert validate.main(['--checkpoint', str(alone), '--data-dir', str(image_folder), '--img-size', '32']) == 0
    assert numbers(last_line(capsys)) == numbers(trained)


def test_data_with_other_classes_are_refused(image_folder, tmp_path, capsys):
    folder = run(image_folder, tmp_path, '--epochs', '1', '--warmup-epochs', '0')
    (image_folder / 'validation' / 'class5').rename(image_folder / 'validation' / 'renamed')
    assert validate.main(['--checkpoint', str(folder)]) == 1
    assert 'knows the classes class0, class1, ' in (error := capsys.readouterr().err) and 'renamed' in error
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join([*(f'class{label}' for label in range(5)), 'renamed']))
    assert validate.main(['--checkpoint', str(folder), '--class-map', str(names)]) == 0
    # As many classes as CIFAR-10 has, but digits.
    assert validate.main(['--model', 'dit_resnet20', '--pretrained', '--device', 'cpu']) == 1
    error = capsys.readouterr().err
    assert 'knows the classes airplane' in error and 'digits, taken for want of --data-dir, have 0, 1, 2' in error


def test_a_run_knows_its_data_from_any_folder(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(image_folder)
    train.main(['--data-dir', '.', *SMALL, '--epochs', '1', '--output', str(tmp_path), '--experiment', 'run'])
    monkeypatch.chdir(tmp_path)
    assert validate.main(['--checkpoint', 'run']) == 0


@pytest.mark.parametrize('workers', ['0', '1'])
def test_an_unreadable_image_is_one_line_whoever_reads_it(image_folder, tmp_path, workers):
    path = image_folder / 'train' / 'class3' / '4.png'
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SystemExit, match=rf'^error: {path} cannot be read: .*--skip-bad-images\.$'):
        run(image_folder, tmp_path, '--epochs', '1', '--workers', workers)


def test_an_error_of_the_command_line_is_no_page_of_options(capsys):
    with pytest.raises(SystemExit):
        train.parse_args(['--epochs', 'many'])
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_what_has_no_effect_is_said(image_folder, tmp_path, capsys):
    options = ['--model', 'test_resnet', '--quadratic-lr-scale', '10', '--batch-size', '40']
    run(image_folder, tmp_path, '--epochs', '1', *options)
    printed = capsys.readouterr().out
    assert '--quadratic-lr-scale changes nothing' in printed and 'Lower the one or raise the other' in printed
    assert '8 of the training images, other ones in each epoch, fill no batch of 40' in printed


def test_validate_agrees_with_a_loop_written_out(image_folder, tmp_path, capsys):
    folder = run(image_folder, tmp_path, '--epochs', '1', '--warmup-epochs', '0')
    weights = str(folder / 'model.safetensors')
    model = timm.create_model('test_dit_resnet', num_classes=6, checkpoint_path=weights).eval()
    config = timm.data.resolve_data_config({'img_size': 32}, model=model)
    transform = timm.data.create_transform(**config)
    correct = 0
    for label in range(6):
        for path in (image_folder / 'validation' / f'class{label}').iterdir():
            with torch.no_grad():
                logits = model(transform(Image.open(path).convert('RGB')).unsqueeze(0))
            correct += int(logits.argmax() == label)
    assert numbers(last_line(capsys))[0] == f'top1={100 * correct / 18:.3f}'


def test_run_folder(image_folder, tmp_path):
    folder = run(image_folder, tmp_path, '--epochs', '2', '--warmup-epochs', '0', '--experiment', 'name')
    files = sorted(path.name for path in folder.iterdir())
    assert files == [
        'args.yaml', 'checkpoints', 'curves.png', 'environment.csv', 'model.safetensors', 'results.csv', 'summary.csv',
    ]
    assert folder.name == 'name'
    options = yaml.safe_load((folder / 'args.yaml').read_text())
    assert options['num_classes'] == 6 and options['model'] == 'test_dit_resnet'
    with (folder / 'summary.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['epoch'] for row in rows] == ['0', '1']
    assert Image.open(folder / 'curves.png').size[0] > 500
    weights = load_file(folder / 'model.safetensors')
    # The quadratic term started at zero, so training is what made it something else.
    assert weights['layer2.0.conv2.quadratic.weight'].abs().max() > 0


def test_same_seed_same_weights(image_folder, tmp_path):
    options = ['--epochs', '1', '--warmup-epochs', '0']
    first, second, other = (
        load_file(run(image_folder, tmp_path, *options, '--seed', seed, '--experiment', name) / 'model.safetensors')
        for name, seed in (('a', '1'), ('b', '1'), ('c', '2'))
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first['fc.weight'], other['fc.weight'])


def test_config_sets_options_and_the_command_line_wins(tmp_path):
    config = tmp_path / 'recipe.yaml'
    config.write_text('lr: 0.25\nepochs: 7\n')
    args = train.parse_args(['--config', str(config), '--epochs', '3', '--data-dir', 'x'])
    assert (args.lr, args.epochs) == (0.25, 3)


@pytest.mark.parametrize('line, message', [
    ('amp: "no"', "recipe.yaml: argument --amp: must be true or false; got 'no'"),
    ('amp_dtype: float8', "recipe.yaml: argument --amp-dtype: invalid choice: 'float8'"),
    ('lr: [1, 2]', 'recipe.yaml: argument --lr: must be a number; got [1, 2]'),
    ('epochs: 0', 'argument --epochs: must be at least 1; got 0'),
    ('help: true', "sets 'help', which is no option"),
])
def test_config_values_are_checked_as_those_of_the_command_line(tmp_path, capsys, line, message):
    config = tmp_path / 'recipe.yaml'
    config.write_text(line)
    with pytest.raises(SystemExit):
        train.parse_args(['--config', str(config)])
    assert message in capsys.readouterr().err


def test_config_of_every_kind_of_value(tmp_path):
    config = tmp_path / 'recipe.yaml'
    config.write_text('batch-size: 3\namp: true\nchannels_last: false\nscale: [0.5, 0.75]\nmin_lr: -1.0e-3\n'
                      'aa: null\nmodel_kwargs: {dendrites: layer1.0.conv2}\n')
    args = train.parse_args(['--config', str(config), '--no-amp'])
    assert (args.batch_size, args.amp, args.channels_last, args.scale) == (3, False, False, [0.5, 0.75])
    assert (args.min_lr, args.aa, args.model_kwargs) == (-1e-3, None, {'dendrites': 'layer1.0.conv2'})


def test_no_aug_is_on_where_it_is_named(tmp_path):
    config = tmp_path / 'recipe.yaml'
    config.write_text('no_aug: true\n')
    recipe = ['--config', str(config)]
    for words, expected in (
        ([], False), (['--no-aug'], True), (['--no-no-aug'], False), (recipe, True), ([*recipe, '--no-no-aug'], False),
    ):
        assert train.parse_args(['--data-dir', 'x', *words]).no_aug == expected


def test_config_with_a_typo_names_the_near_match(tmp_path, capsys):
    config = tmp_path / 'recipe.yaml'
    config.write_text('weight_decai: 0.1\n')
    with pytest.raises(SystemExit):
        train.parse_args(['--config', str(config)])
    assert "Did you mean 'weight_decay'?" in capsys.readouterr().err


def test_a_typo_on_the_command_line_names_the_near_match(capsys):
    with pytest.raises(SystemExit):
        train.parse_args(['--data-dir', 'x', '--weight-decai', '0.1'])
    assert 'unrecognized arguments: --weight-decai 0.1. Did you mean --weight-decay?' in capsys.readouterr().err


def test_without_arguments_the_recipe_of_the_digits():
    args = train.parse_args([])
    assert args.config.name == 'digits.yaml' and args.model == 'dit_resnet20' and args.hflip == 0


def test_every_recipe_is_accepted():
    recipes = sorted((Path(__file__).parents[2] / 'scripts' / 'recipes').glob('*.yaml'))
    assert recipes
    for recipe in recipes:
        args = train.parse_args(['--config', str(recipe)])
        assert timm.is_model(args.model)
        # The header says what it is.
        header = recipe.read_text().split('model:')[0]
        assert 'Source:' in header and 'ardware:' in header


def test_a_missing_split_is_named_with_what_there_is(image_folder):
    args = train.parse_args(['--data-dir', str(image_folder)])
    with pytest.raises(FileNotFoundError, match=r"no split 'holdout'.*\['train', 'validation'\]"):
        open_split(args, 'holdout')


def test_a_split_is_never_the_whole_folder(image_folder):
    # timm takes all images below the folder where it finds no split of that name.
    (image_folder / 'validation').rename(image_folder / 'test')
    args = train.parse_args(['--data-dir', str(image_folder)])
    with pytest.raises(FileNotFoundError, match="no split 'validation'.*'test'"):
        open_split(args, args.val_split)
    assert len(open_split(args, 'test')) == 18


@pytest.mark.parametrize('name', ['val', 'valid', 'eval', 'evaluation'])
def test_other_names_of_validation(image_folder, name):
    (image_folder / 'validation').rename(image_folder / name)
    assert len(open_split(train.parse_args(['--data-dir', str(image_folder)]), 'validation')) == 18


def test_an_unknown_model_is_named_with_near_names(image_folder, tmp_path):
    with pytest.raises(SystemExit, match='dit_resnet21 is not known.*dit_resnet20'):
        run(image_folder, tmp_path, '--epochs', '1', '--model', 'dit_resnet21')


def test_splits_with_different_classes_are_refused(image_folder, tmp_path):
    (image_folder / 'validation' / 'class5').rename(image_folder / 'validation' / 'class9')
    with pytest.raises(SystemExit, match='class5'):
        run(image_folder, tmp_path, '--epochs', '1')


def test_too_few_classes_are_refused(image_folder, tmp_path):
    with pytest.raises(SystemExit, match='--num-classes is 4, but the training data have 6'):
        run(image_folder, tmp_path, '--epochs', '1', '--num-classes', '4')


def test_archives_hold_the_same_images_as_folders(image_folder):
    args = train.parse_args(['--data-dir', str(image_folder)])
    from_folder = open_split(args, 'train')
    with tarfile.open(image_folder / 'train.tar', 'w') as tar:
        tar.add(image_folder / 'train', arcname='.')
    from_archive = open_split(args, 'train')
    assert class_names(from_archive) == class_names(from_folder) == [f'class{label}' for label in range(6)]

    def pixels(dataset):
        return sorted((label, image.tobytes()) for image, label in (dataset[index] for index in range(len(dataset))))

    assert pixels(from_archive) == pixels(from_folder)


def test_digits_are_written_once(tmp_path, monkeypatch):
    from sklearn.datasets import load_digits
    monkeypatch.setattr(digits, 'default_cache', lambda: tmp_path / 'dit_timm')
    folder = digits.digits_folder()
    files = sorted(folder.rglob('*.png'))
    assert len(files) == 1797 and len(list((folder / 'validation').rglob('*.png'))) == 360
    truth = load_digits()
    for path in files[::97]:
        index = int(path.stem)
        assert path.parent.name == str(truth.target[index])
        assert abs(Image.open(path).getpixel((1, 1)) - truth.images[index].flat[9] * 255 / 16) <= 0.5
    times = [path.stat().st_mtime_ns for path in files]
    assert digits.digits_folder() == folder
    assert [path.stat().st_mtime_ns for path in files] == times
    assert list((tmp_path / 'dit_timm').iterdir()) == [folder]


DATA = os.environ.get('DIT_TIMM_DATA')


@pytest.mark.skipif(not DATA, reason='DIT_TIMM_DATA names no folder with real images')
@pytest.mark.parametrize('name, split, images, size', [
    ('cifar10', 'test', 10_000, (32, 32)), ('imagenette', 'val', 3_925, (160, 160)),
])
def test_real_archives(name, split, images, size):
    dataset = open_split(train.parse_args(['--data-dir', str(Path(DATA) / name)]), split)
    assert len(dataset) == images and len(class_names(dataset)) == 10
    image, label = dataset[0]
    assert image.size == size and image.mode == 'RGB' and 0 <= label < 10
