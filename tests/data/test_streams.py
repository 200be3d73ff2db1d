"""Data that are read as a stream: webdataset shards, and Hugging Face's data sets."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dit_timm.cli import train, validate
from dit_timm.data.loaders import eval_loader, train_loader
from dit_timm.data.splits import open_split
from dit_timm.training import steps
from dit_timm.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.slow

TRAIN = str(Path(__file__).parents[2] / 'scripts' / 'train.py')
OPTIONS = [
    '--model', 'test_dit_convnext', '--img-size', '32', '--num-classes', '3', '--batch-size', '4', '--workers', '2',
    '--lr', '0.01', '--epochs', '3', '--warmup-epochs', '0', '--device', 'cpu', '--aa', 'rand-m9-mstd0.5',
]


def grey(label, generator):
    pixels = 80 * label + torch.randint(0, 40, (32, 32, 3), generator=generator)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


@pytest.fixture
def shards(tmp_path):
    """Shards of webdataset: `train` with 8 x 7 images of three classes, `validation` with 3 x 5."""
    pytest.importorskip('webdataset')
    generator = torch.Generator().manual_seed(0)
    root, splits = tmp_path / 'shards', {}
    root.mkdir()
    for split, shard_count, size in (('train', 8, 7), ('validation', 3, 5)):
        names = [f'{split}-{shard}.tar' for shard in range(shard_count)]
        for shard, name in enumerate(names):
            with tarfile.open(root / name, 'w') as tar:
                for index in range(size):
                    label = (shard + index) % 3
                    image = io.BytesIO()
                    grey(label, generator).save(image, 'png')
                    for suffix, content in (('png', image.getvalue()), ('cls', str(label).encode())):
                        member = tarfile.TarInfo(f'{shard}{index}.{suffix}')
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        splits[split] = {
            'name': split, 'filenames': names, 'shard_lengths': [size] * shard_count, 'num_samples': size * shard_count,
        }
    (root / '_info.json').write_text(json.dumps({'splits': splits}))
    return ['--dataset', 'wds/greys', '--data-dir', str(root)]


def run(data, tmp_path, name, *options):
    train.main([*data, *OPTIONS, '--output', str(tmp_path / 'out'), '--experiment', name, *options])
    return tmp_path / 'out' / name


def test_a_stream_has_no_images_to_leave_out(shards, tmp_path, capsys):
    folder = run(shards, tmp_path, 'run', '--epochs', '1')
    assert validate.main(['--checkpoint', str(folder), '--skip-bad-images']) == 1
    line, = (line for line in capsys.readouterr().err.splitlines() if line.startswith('error: '))
    assert '--skip-bad-images needs images by number' in line


def test_images_of_shards_are_seen_as_they_look(tmp_path):
    pytest.importorskip('webdataset')
    exif = Image.Exif()
    # White on the left in the file, and above as it looks.
    exif[0x0112] = 6
    lying = Image.new('RGB', (32, 32))
    lying.paste('white', (0, 0, 16, 32))
    deep = Image.fromarray(np.full((32, 32), 128 << 8, np.uint16))
    with tarfile.open(tmp_path / 'some.tar', 'w') as tar:
        for name, (image, options) in {'0.jpg': (lying, {'exif': exif}), '1.png': (deep, {})}.items():
            content = io.BytesIO()
            image.save(content, 'jpeg' if name.endswith('jpg') else 'png', **options)
            for file, value in ((name, content.getvalue()), (f'{name[0]}.cls', name[0].encode())):
                member = tarfile.TarInfo(file)
                member.size = len(value)
                tar.addfile(member, io.BytesIO(value))
    split = {'name': 'some', 'filenames': ['some.tar'], 'shard_lengths': [2], 'num_samples': 2}
    (tmp_path / '_info.json').write_text(json.dumps({'splits': {'some': split}}))
    args = train.parse_args([
        '--dataset', 'wds/some', '--data-dir', str(tmp_path), *OPTIONS, '--workers', '1', '--crop-pct', '1', '--aa', '',
        '--no-aug', '--batch-size', '2',
    ])
    config = {
        'input_size': (3, 32, 32), 'interpolation': 'bilinear', 'crop_pct': 1., 'crop_mode': 'center',
        'mean': (0.,) * 3, 'std': (1.,) * 3, 'input_img_mode': 'RGB',
    }
    for batches in (
            eval_loader(args, open_split(args, 'some'), config),
            train_loader(args, open_split(args, 'some', is_training=True), config)[0],
    ):
        images, targets = next(iter(batches))
        found = {target: (255 * image).round() for image, target in zip(images, targets.tolist())}
        assert found[0][:, :15].min() > 250 and found[0][:, 17:].max() < 5
        assert found[1].unique().tolist() == [128]


def assert_same_weights(folder, other):
    ours, theirs = (load_file(path / 'model.safetensors') for path in (folder, other))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def seen(monkeypatch):
    """The batches that a run trains on, by epoch."""
    batches, step = {}, steps.Steps.step

    def stepping(self, images, targets, epoch, *rest):
        batches.setdefault(epoch, []).append((images.sum().item(), targets.tolist()))
        return step(self, images, targets, epoch, *rest)

    monkeypatch.setattr(steps.Steps, 'step', stepping)
    return batches


def test_a_stopped_run_on_shards_goes_on_at_the_epoch(shards, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        batches = seen(patch)
        whole = run(shards, tmp_path, 'whole')
    # Two workers, each with 28 images in whole batches; another order in each epoch.
    assert [len(of_epoch) for of_epoch in batches.values()] == [14, 14, 14]
    assert batches[0] != batches[1] != batches[2]
    assert sum(len(targets) for _, targets in batches[0]) == 56
    step, calls = steps.Steps.step, []

    def stepping(self, *args):
        calls.append(1)
        if len(calls) == 20:
            os.kill(os.getpid(), 15)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(steps.Steps, 'step', stepping)
        with pytest.raises(SystemExit):
            run(shards, tmp_path, 'stopped')
    folder = tmp_path / 'out' / 'stopped'
    assert f'Go on with --resume {folder}' in capsys.readouterr().out
    assert list_checkpoints(folder)[-1].name == '000001-00000000'
    with pytest.raises(SystemExit):
        train.main(['--resume', str(folder), '--workers', '1'])
    assert '--workers is 2, not 1' in capsys.readouterr().err
    train.main(['--resume', str(folder)])
    assert_same_weights(folder, whole)


def test_two_processes_evaluate_every_image_of_the_shards_once(shards, tmp_path, capsys):
    process = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', TRAIN,
         *shards, *OPTIONS, '--epochs', '1', '--output', str(tmp_path), '--experiment', 'run'],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True,
    )
    assert process.returncode == 0, process.stderr
    assert validate.main(['--checkpoint', str(tmp_path / 'run')]) == 0
    printed = capsys.readouterr().out
    assert 'validation: 15 images' in printed
    one, two = (text.strip().splitlines()[-1].split()[:2] for text in (printed, process.stdout))
    assert one == two


@pytest.mark.parametrize('option, message', [
    (['--val-fraction', '0.1'], '--val-fraction would need images by number'),
    (['--checkpoint-interval', '3'], '--checkpoint-interval would need images by number'),
    (['--cache-images'], '--cache-images would need images by number'),
    (['--workers', '0'], 'needs --workers 1 or more; got 0'),
    (['--workers', '9'], 'have 8 shards, too few for --workers 9: lower --workers'),
    (['--num-classes', '2'], 'error: The data have the label 2; --num-classes is 2.'),
])
def test_what_a_stream_cannot_do_is_refused(shards, tmp_path, option, message):
    with pytest.raises(SystemExit, match=message):
        run(shards, tmp_path, 'run', *option)


@pytest.mark.parametrize('prefix', ['hfds', 'hfids'])
def test_hugging_face_data_sets(tmp_path, capsys, prefix, monkeypatch):
    pytest.importorskip('datasets')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    generator = torch.Generator().manual_seed(0)
    for split, count in (('train', 8), ('validation', 3)):
        for label, name in enumerate(('dark', 'grey', 'light')):
            folder = tmp_path / 'images' / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                grey(label, generator).save(folder / f'{index}.png')
    data = ['--dataset', f'{prefix}/{tmp_path / "images"}', '--data-dir', str(tmp_path / 'cache'), '--dataset-download']
    folder = run(data, tmp_path, 'run', '--workers', '1', '--epochs', '1')
    assert '24 training and 9 evaluation images' in capsys.readouterr().out
    assert validate.main(['--checkpoint', str(folder)]) == 0
    assert 'validation: 9 images' in capsys.readouterr().out
    assert Path(folder / 'results.csv').is_file()


def test_a_stream_that_names_no_classes_needs_their_number(shards, tmp_path):
    with pytest.raises(SystemExit, match='name --num-classes'):
        train.main([*shards, '--model', 'test_dit_convnext', '--device', 'cpu', '--output', str(tmp_path)])
