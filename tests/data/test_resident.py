"""Images on the device: what batches hold, what is kept on the disk, what is refused."""

import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dit_timm.cli import train
from dit_timm.data import resident
from dit_timm.data.loaders import eval_loader, train_loader
from dit_timm.data.resident import ResidentSplits
from dit_timm.data.splits import data_config, open_split
from dit_timm.pretrained.weight_files import digest
from dit_timm.training import steps
from dit_timm.training.checkpoint import list_checkpoints
from dit_timm.training.model import build_model

PLAIN = ['--scale', '1', '1', '--ratio', '1', '1', '--color-jitter', '0']
SMALL = ['--model', 'dit_resnet20', '--batch-size', '4', '--workers', '0', *PLAIN]
PADDING = 2


@pytest.fixture
def greys(write_greys):
    return write_greys(train=(7, 6, 5), validation=(2, 2, 2))


@pytest.fixture
def options(greys, tmp_path):
    def parse(*words):
        return train.parse_args([
            '--data-dir', str(greys), '--data-on-device', '--data-cache', str(tmp_path / 'cache'), *SMALL, *words,
        ])
    return parse


def open_train(args):
    args.num_classes = 3
    config = data_config(args, build_model(args))
    splits = ResidentSplits('cpu', args.data_cache)
    return train_loader(args, open_split(args, 'train'), config, resident=splits)[0], config


def original(pixels, config):
    """uint8 (H, W, C) of normalised pixels (C, H, W)."""
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ('mean', 'std'))
    return ((pixels * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_without_augmentation_batches_are_those_of_the_ordinary_loader(options):
    args = options('--hflip', '0')
    batches, config = open_train(args)
    ordinary, order = train_loader(args, open_split(args, 'train'), config)
    for epoch, start in ((0, 0), (1, 0), (1, 2)):
        batches.order.set_position(epoch, start)
        order.set_position(epoch, start)
        pairs = list(zip(batches, ordinary))
        assert len(pairs) == len(batches) == 4 - start
        for (ours, our_targets), (theirs, their_targets) in pairs:
            assert torch.equal(ours, theirs) and torch.equal(our_targets, their_targets)


def test_evaluation_sees_what_it_sees_of_the_ordinary_loader(options, greys):
    # Larger than the input, so that they are resized and cropped.
    for path in (greys / 'validation').rglob('*.png'):
        Image.open(path).resize((48, 40)).save(path)
    args = options('--crop-pct', '0.9')
    args.num_classes = 3
    config = data_config(args, build_model(args))
    splits, indices = ResidentSplits('cpu', args.data_cache), [0, 2, 3, 5]
    for chosen in (None, indices):
        ours = eval_loader(
            args, open_split(args, 'validation'), config, chosen, resident=splits, split='validation',
        )
        theirs = eval_loader(args, open_split(args, 'validation'), config, chosen)
        assert len(ours) == len(list(ours)) == len(list(theirs))
        for (images, targets), (expected, expected_targets) in zip(ours, theirs):
            assert torch.equal(images, expected) and torch.equal(targets, expected_targets)
    shares = [
        eval_loader(args, open_split(args, 'validation'), config, None, rank, 2, splits, 'validation')
        for rank in range(2)
    ]
    assert sum(len(targets) for share in shares for _, targets in share) == 6


def test_crops_and_flips_are_those_that_can_be_and_all_of_them_come(options, greys):
    args = options('--crop-padding', str(PADDING), '--hflip', '0.5', '--vflip', '0.25', '--batch-size', '18')
    batches, config = open_train(args)
    found = {}
    for path in sorted((greys / 'train').rglob('*.png')):
        padded = np.pad(np.array(Image.open(path)), ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
        for top in range(2 * PADDING + 1):
            for left in range(2 * PADDING + 1):
                crop = padded[top:top + 32, left:left + 32]
                for up, over in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    view = crop[::-1 if up else 1, ::-1 if over else 1]
                    found[view.tobytes()] = (int(path.parent.name[-1]), top, left, up, over)
    seen = []
    for epoch in range(40):
        batches.order.set_position(epoch)
        (images, targets), = batches
        for image, target in zip(images, targets.tolist()):
            label, *how = found[original(image, config).tobytes()]
            assert label == target
            seen.append(tuple(how))
    count = len(seen)
    assert {(top, left) for top, left, _, _ in seen} == {(top, left) for top in range(5) for left in range(5)}
    # Five standard deviations.
    assert abs(sum(over for *_, over in seen) / count - 0.5) < 2.5 / count ** 0.5
    assert abs(sum(up for _, _, up, _ in seen) / count - 0.25) < 2.2 / count ** 0.5
    assert max(Counter((top, left) for top, left, _, _ in seen).values()) < count / 25 * 2


def test_augmentation_depends_on_seed_epoch_and_image_alone(options):
    words = ['--crop-padding', '3']

    def views(*more, epoch=1):
        batches, _ = open_train(options(*words, *more))
        batches.order.set_position(epoch)
        return {image.numpy().tobytes() for images, _ in batches for image in images}

    once = views('--batch-size', '18')
    assert len(once) == 18 and once == views('--batch-size', '9') == views('--batch-size', '2')
    assert not once & views('--batch-size', '18', epoch=2) or len(once & views('--batch-size', '18', epoch=2)) < 4
    assert len(once & views('--batch-size', '18', '--seed', '7')) < 4


def test_held_out_images_stay_out(options):
    args = options('--hflip', '0')
    args.num_classes = 3
    config = data_config(args, build_model(args))
    dataset = open_split(args, 'train')
    kept = [index for index in range(18) if index % 3]
    splits = ResidentSplits('cpu', args.data_cache)
    ours, _ = train_loader(args, dataset, config, kept, resident=splits)
    theirs, order = train_loader(args, open_split(args, 'train'), config, kept)
    for (images, targets), (expected, expected_targets) in zip(ours, theirs):
        assert torch.equal(images, expected) and torch.equal(targets, expected_targets)


def test_images_are_decoded_once(options, greys, monkeypatch, caplog):
    batches, _ = open_train(options())
    first = batches.images
    decode = resident._decode
    monkeypatch.setattr(resident, '_decode', lambda *args: pytest.fail('decoded again'))
    again = open_train(options())[0].images
    assert again.digest == first.digest and torch.equal(again.pixels, first.pixels)

    monkeypatch.setattr(resident, '_decode', decode)
    file, = Path(options().data_cache).iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert torch.equal(open_train(options())[0].images.pixels, first.pixels)
    assert 'decoded again' in caplog.text

    path = sorted((greys / 'train').rglob('*.png'))[0]
    Image.fromarray(255 - np.array(Image.open(path))).save(path)
    changed = open_train(options())[0].images
    assert changed.digest != first.digest and not torch.equal(changed.pixels, first.pixels)


def test_images_that_are_decoded_in_another_way_are_decoded_again(options, monkeypatch):
    open_train(options())
    monkeypatch.setattr(resident, '_DECODING', 'another way')
    open_train(options())
    assert len(list(Path(options().data_cache).iterdir())) == 2


def test_an_archive_is_read_as_its_folder_is(options, greys):
    import tarfile
    batches, _ = open_train(options())
    with tarfile.open(greys / 'train.tar', 'w') as tar:
        tar.add(greys / 'train', arcname='.')
    packed, _ = open_train(options())
    assert packed.images.pixels.shape == batches.images.pixels.shape
    assert sorted(image.numpy().tobytes() for image in packed.images.pixels) == sorted(
        image.numpy().tobytes() for image in batches.images.pixels
    )


@pytest.mark.parametrize('words, named', [
    (['--aa', 'rand-m9'], '--aa'), (['--color-jitter', '0.4'], '--color-jitter'), (['--scale', '0.5', '1'], '--scale'),
    (['--ratio', '0.5', '1'], '--ratio'), (['--train-crop-mode', 'rkrc'], '--train-crop-mode'),
    (['--skip-bad-images'], '--skip-bad-images'), (['--cache-images'], '--cache-images'),
])
def test_what_the_device_does_not_do_is_refused_by_name(options, words, named):
    with pytest.raises(ValueError, match=f'does not do {named}'):
        open_train(options(*words))


def test_images_of_another_size_are_refused(options, greys):
    Image.new('RGB', (40, 32)).save(greys / 'train' / 'class0' / 'wide.png')
    with pytest.raises(ValueError, match='3 x 32 x 40.*3 x 32 x 32'):
        open_train(options())


def test_a_run_on_images_that_changed_does_not_go_on(options, greys, tmp_path, capsys):
    words = [
        '--data-dir', str(greys), '--data-on-device', '--data-cache', str(tmp_path / 'cache'), *SMALL, '--epochs', '1',
        '--output', str(tmp_path), '--experiment', 'run', '--warmup-epochs', '0',
    ]
    train.main(words)
    Image.new('RGB', (32, 32)).save(greys / 'train' / 'class0' / 'new.png')
    with pytest.raises(SystemExit, match='other images'):
        train.main(['--resume', str(tmp_path / 'run')])


def test_erasing_and_mixup_follow_and_a_run_goes_on_in_the_middle_of_an_epoch(greys, tmp_path, monkeypatch):
    words = [
        '--data-dir', str(greys), '--data-on-device', '--data-cache', str(tmp_path / 'cache'), *SMALL, '--epochs', '2',
        '--output', str(tmp_path), '--warmup-epochs', '0', '--crop-padding', '2', '--device', 'cpu', '--lr', '0.01',
    ]
    mixed = ['--mixup', '0.5', '--cutmix', '1', '--reprob', '0.5']

    def weights(name, *more):
        train.main([*words, '--experiment', name, *more])
        return digest(load_file(tmp_path / name / 'model.safetensors'))

    whole = weights('whole', *mixed)
    assert whole != weights('bare')
    step, calls = steps.Steps.step, []

    def stepping(self, *args):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(steps.Steps, 'step', stepping)
        with pytest.raises(SystemExit):
            weights('stopped', *mixed)
    assert list_checkpoints(tmp_path / 'stopped')[-1].name == '000001-00000002'
    train.main(['--resume', str(tmp_path / 'stopped')])
    assert digest(load_file(tmp_path / 'stopped' / 'model.safetensors')) == whole
