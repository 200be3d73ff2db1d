"""Parts of the training: parameter groups and schedules, freezing, splits, unreadable images, batches."""

import csv
import os
import signal
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from dit_timm.cli import train, validate
from dit_timm.data.dataset import Images, UnreadableImageError, readable
from dit_timm.data.loaders import train_loader
from dit_timm.data.sampler import EpochBatches
from dit_timm.data.splits import data_config, hold_out, labels, open_split
from dit_timm.training import fit, model
from dit_timm.training.checkpoint import list_checkpoints
from dit_timm.training.engine import evaluate
from dit_timm.training.interrupt import Interrupt
from dit_timm.training.logs import read_csv
from dit_timm.training.optim import freeze_all_but, is_quadratic, parameter_groups, set_training

SMALL = ['--model', 'test_dit_resnet', '--img-size', '32', '--batch-size', '4', '--workers', '0', '--lr', '0.01',
         '--epochs', '1', '--warmup-epochs', '0']


@pytest.fixture
def image_folder(write_greys):
    return write_greys(train=(12, 8, 4), validation=(2, 2, 2), test=(2, 2, 2))


def run(image_folder, *options):
    output = image_folder.parent / 'out'
    train.main(['--data-dir', str(image_folder), *SMALL, '--output', str(output), '--experiment', 'run', *options])
    return output / 'run'


@pytest.mark.parametrize('on_epochs', [True, False])
@pytest.mark.parametrize('sched', ['cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant'])
@pytest.mark.parametrize('layer_decay', [None, 0.5])
def test_quadratic_terms_keep_their_share_of_the_learning_rate(sched, on_epochs, layer_decay):
    model = timm.create_model('test_dit_convnext')
    optimizer = create_optimizer_v2(parameter_groups(model, 0.1, 10., layer_decay), opt='adamw', lr=0.1)
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched=sched, num_epochs=12, warmup_epochs=3, warmup_lr=1e-4, min_lr=1e-3, decay_milestones=[5, 8],
        decay_epochs=4, step_on_epochs=on_epochs, updates_per_epoch=2,
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = set()
    for epoch in range(epochs):
        for update in range(2):
            unscaled = {round(group['lr'] / group['lr_scale'], 12) for group in optimizer.param_groups}
            assert len(unscaled) == 1, 'all follow one schedule'
            seen |= unscaled
            scheduler.step_update(2 * epoch + update + 1)
        scheduler.step(epoch + 1)
    assert len(seen) > 2 and min(seen) >= 1e-4
    for group in optimizer.param_groups:
        kinds = {is_quadratic(names[id(parameter)]) for parameter in group['params']}
        assert len(kinds) == 1
        if layer_decay is None:
            assert group['lr_scale'] == (10. if kinds == {True} else 1.)
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(names)


def test_weight_decay_is_timms_or_on_everything():
    model = timm.create_model('dit_resnet20')
    for norms in (False, True):
        groups = parameter_groups(model, 1e-4, 10., decay_norms=norms)
        decayed = {id(parameter) for group in groups for parameter in group['params'] if group['weight_decay']}
        expected = {
            id(parameter) for name, parameter in model.named_parameters()
            # The norm over maps has the dimensions of a weight.
            if norms or parameter.ndim > 1 and not name.endswith(('.bias', 'quadratic_norm.weight'))
        }
        assert decayed == expected


def test_an_optimizer_of_second_order_gets_what_it_differentiates(image_folder):
    options = ['--model', 'dit_resnet20', '--opt', 'adahessian', '--grad-accum-steps', '2', '--batch-size', '6']
    weights = load_file(run(image_folder, *options) / 'model.safetensors')
    begun = timm.create_model('dit_resnet20', num_classes=3).state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert weights['layer2.0.quadratic.weight'].abs().max() > 0 and weights.keys() == begun.keys()


def test_timms_optimizers_do_not_decay_the_norm_in_front():
    model = timm.create_model('dit_resnet20')
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1, weight_decay=0.1)
    decay = {id(parameter): group['weight_decay'] for group in optimizer.param_groups for parameter in group['params']}
    block = model.layer2[0]
    assert decay[id(block.quadratic_norm.weight)] == decay[id(block.bn2.weight)] == 0
    assert decay[id(block.quadratic.weight)] == decay[id(block.conv2.weight)] == 0.1
    assert timm.create_model('dit_resnet20', quadratic=False).no_weight_decay() == set()


def test_the_norm_in_front_belongs_to_the_term():
    names = [name for name, _ in timm.create_model('dit_resnet20').named_parameters() if is_quadratic(name)]
    block = 'layer2.0'
    assert sorted(names) == [
        f'{block}.quadratic.weight', f'{block}.quadratic_norm.bias', f'{block}.quadratic_norm.weight',
    ]


def test_train_only_the_quadratic_terms(image_folder):
    folder = run(image_folder, '--model', 'test_dit_convnext', '--opt', 'adamw', '--train-only', 'quadratic')
    before, after = (load_file(path / 'model.safetensors') for path in list_checkpoints(folder))
    assert any('quadratic' in name for name in after)
    for name, value in after.items():
        assert torch.equal(value, before[name]) == ('quadratic' not in name), name


def test_frozen_norms_keep_their_statistics():
    model = timm.create_model('test_dit_resnet')
    assert freeze_all_but(model, ['quadratic', r'^fc\.']) > 0
    set_training(model)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms) and model.training
    with pytest.raises(ValueError, match='--train-only nothing is found in no parameter'):
        freeze_all_but(model, ['nothing'])


def test_a_held_out_split_is_stratified_and_the_same_for_all_seeds(image_folder):
    dataset = open_split(train.parse_args(['--data-dir', str(image_folder)]), 'train')
    np.random.seed(1)
    kept, held = hold_out(dataset, 0.25)
    np.random.seed(2)
    assert (kept, held) == hold_out(dataset, 0.25)
    assert sorted(kept + held) == list(range(24))
    assert [sum(labels(dataset)[held] == label) for label in range(3)] == [3, 2, 1]
    with pytest.raises(ValueError, match='--val-fraction 0.01 of 24 images cannot be held out'):
        hold_out(dataset, 0.01)


def test_the_test_split_is_read_once_with_the_epoch_that_the_held_out_split_chose(image_folder, monkeypatch):
    folder = run(image_folder, '--epochs', '3', '--val-fraction', '0.25', '--test-split', 'test')
    with (folder / 'summary.csv').open() as file:
        top1 = [float(row['eval_top1']) for row in csv.DictReader(file)]
    with (folder / 'results.csv').open() as file:
        held_out, test = csv.DictReader(file)
    assert held_out['split'] == '0.25 of train' and test['split'] == 'test'
    total = sum(1 for _ in (image_folder / 'train').glob('*/*'))
    assert int(held_out['images']) == total // 4
    assert int(test['images']) == sum(1 for _ in (image_folder / 'test').glob('*/*'))
    assert int(held_out['epoch']) == int(test['epoch']) == top1.index(max(top1))
    assert test['chosen'] == 'best'


def test_the_last_epoch_is_kept_where_nothing_chooses(image_folder, capsys):
    folder = run(image_folder, '--epochs', '2', '--test-split', 'test')
    with (folder / 'results.csv').open() as file:
        validation, test = csv.DictReader(file)
    assert [row['epoch'] for row in (validation, test)] == ['1', '1'] and test['chosen'] == 'last'
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[-2].startswith('epoch 2, the last; on test:')
    validate.main(['--checkpoint', str(folder), '--val-split', 'test'])
    again = capsys.readouterr().out.strip().splitlines()[-1]
    assert again.split()[:2] == printed[-1].split()[:2]


def damage(path):
    path.write_bytes(path.read_bytes()[:200])


def test_an_unreadable_image_is_named(image_folder):
    bad = image_folder / 'train' / 'class1' / '3.png'
    damage(bad)
    with pytest.raises(SystemExit, match=f'{bad} cannot be read.*--skip-bad-images'):
        run(image_folder)


def test_bad_images_are_left_out_and_counted(image_folder, capsys):
    damage(image_folder / 'train' / 'class1' / '3.png')
    (image_folder / 'train' / 'class0' / '5.png').write_bytes(b'no image')
    damage(image_folder / 'validation' / 'class0' / '0.png')
    run(image_folder, '--skip-bad-images')
    printed = capsys.readouterr().out
    assert 'left out: 3' in printed and '22 training and 5 evaluation images' in printed


def test_which_images_are_bad(image_folder):
    damage(image_folder / 'train' / 'class1' / '3.png')
    dataset = open_split(train.parse_args(['--data-dir', str(image_folder)]), 'train')
    _, (bad,) = readable(dataset, None, workers=0)
    assert dataset.filename(bad).endswith('class1/3.png')
    with pytest.raises(UnreadableImageError, match='class1/3.png'):
        Images(dataset)[0, bad]


def test_an_empty_class_is_named(image_folder):
    (image_folder / 'train' / 'class9').mkdir()
    (image_folder / 'train' / 'class9' / 'notes.txt').write_text('no image')
    with pytest.raises(SystemExit, match='without an image.*class9'):
        run(image_folder)


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_batches_do_not_depend_on_the_processes(world_size):
    alone = EpochBatches(50, 6, seed=1)
    together = [EpochBatches(50, 6 // world_size, 1, rank, world_size) for rank in range(world_size)]
    for epoch in range(2):
        for batches in (alone, *together):
            batches.set_position(epoch)
        parts = [list(batches) for batches in together]
        for number, batch in enumerate(alone):
            assert sorted(batch) == sorted(sum((part[number] for part in parts), []))


def test_an_epoch_goes_on_where_it_was_left():
    batches = EpochBatches(50, 6, seed=1)
    batches.set_position(4)
    whole = list(batches)
    assert len(whole) == len(batches) == 8 and len({key for batch in whole for key in batch}) == 48
    batches.set_position(4, 3)
    assert list(batches) == whole[3:] and len(batches) == 5
    batches.set_position(5)
    assert list(batches) != whole


def test_augmentation_depends_on_seed_epoch_and_image(image_folder):
    dataset = open_split(train.parse_args(['--data-dir', str(image_folder)]), 'train')
    dataset.transform = timm.data.create_transform((3, 16, 16), is_training=True, use_prefetcher=True)

    def image(seed, epoch, index):
        return Images(dataset, seed=seed)[epoch, index][0].numpy().tobytes()

    first = image(0, 0, 3)
    image(0, 0, 4)
    assert image(0, 0, 3) == first
    assert len({first, image(1, 0, 3), image(0, 1, 3), image(0, 0, 4)}) == 4


def test_images_in_memory_are_read_once_and_augmented_alike(image_folder):
    dataset = open_split(train.parse_args(['--data-dir', str(image_folder)]), 'train')
    dataset.transform = timm.data.create_transform((3, 16, 16), is_training=True, use_prefetcher=True)
    plain, cached = Images(dataset, seed=1), Images(dataset, seed=1, cache=True)
    keys = [(epoch, index) for epoch in range(3) for index in range(len(dataset))]
    expected = [plain[key] for key in keys]
    files = [plain.filename(index) for index in range(len(dataset))]
    for number, (image, target) in enumerate(map(cached.__getitem__, keys)):
        if number == len(files):
            # From the second epoch on there is nothing to read.
            for file in files:
                os.remove(file)
        assert torch.equal(image, expected[number][0]) and target == expected[number][1]


def test_images_that_come_from_no_file_are_not_kept():
    with pytest.raises(ValueError, match='--cache-images keeps images of folders and archives.*TensorDataset'):
        Images(torch.utils.data.TensorDataset(torch.zeros(2)), cache=True)


def test_padded_crops_move_the_image_and_change_nothing_else(image_folder):
    options = ['--scale', '1', '1', '--ratio', '1', '1', '--color-jitter', '0', '--hflip', '0', '--crop-padding', '4']
    args = train.parse_args(['--data-dir', str(image_folder), *SMALL, *options])
    dataset = open_split(args, 'train')
    original = np.asarray(dataset[0][0]).transpose(2, 0, 1)
    config = data_config(args, timm.create_model('test_dit_resnet'))
    train_loader(args, dataset, config)
    padded = np.pad(original, ((0, 0), (4, 4), (4, 4)))
    crops = [padded[:, y:y + 32, x:x + 32] for y in range(9) for x in range(9)]
    places = set()
    for epoch in range(20):
        image = np.asarray(Images(dataset)[epoch, 0][0])
        place, = (number for number, crop in enumerate(crops) if np.array_equal(crop, image))
        places.add(place)
    assert len(places) > 10


def test_dry_run_says_everything_and_writes_nothing(image_folder, capsys):
    train.main(['--data-dir', str(image_folder), *SMALL, '--output', str(image_folder.parent / 'out'), '--dry-run'])
    printed = capsys.readouterr().out
    assert 'lr: 0.01' in printed and 'GMACs an image of 3 x 32 x 32' in printed and '6 batches of 4' in printed
    assert not (image_folder.parent / 'out').exists()


def test_a_dry_run_fetches_no_weights(image_folder, capsys):
    train.main([
        '--data-dir', str(image_folder), *SMALL, '--model', 'dit_resnet18', '--pretrained', '--output',
        str(image_folder.parent / 'out'), '--dry-run',
    ])
    assert 'pretrained: true' in capsys.readouterr().out


def test_an_odd_batch_cannot_be_mixed(image_folder, capsys):
    with pytest.raises(SystemExit):
        run(image_folder, '--mixup', '0.2', '--batch-size', '5')
    assert '--batch-size must be even; got 5' in capsys.readouterr().err


@pytest.mark.parametrize('option, package', [('--log-tensorboard', 'tensorboard'), ('--log-wandb', 'wandb')])
def test_a_missing_logger_says_what_to_install(image_folder, option, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(SystemExit, match=f'pip install {package}'):
        run(image_folder, option)


def test_the_loss_is_not_of_half_precision(image_folder, monkeypatch):
    """On a CPU autocast would leave the loss in the dtype of the logits, and its gradient with it."""
    monkeypatch.setattr(model, 'has_bfloat16_kernels', lambda: True)
    for number, options in enumerate((['--smoothing', '0.1'], ['--smoothing', '0'], ['--bce-loss'])):
        # A single batch: a mean of several would hide it.
        words = ['--device', 'cpu', '--amp', '--batch-size', '24', '--experiment', f'run{number}']
        folder = run(image_folder, *words, *options).with_name(f'run{number}')
        loss, *_ = (float(row['train_loss']) for row in read_csv(folder / 'summary.csv'))
        assert torch.tensor(loss, dtype=torch.float64).bfloat16().item() != loss


def test_a_new_metric_reaches_every_table(image_folder, monkeypatch):
    monkeypatch.setattr(fit, 'evaluate', lambda *args, **kwargs: {**evaluate(*args, **kwargs), 'new': 7.})
    folder = run(image_folder, '--device', 'cpu', '--test-split', 'test')
    assert [row['new'] for row in read_csv(folder / 'results.csv')] == ['7.0', '7.0']
    assert {row['eval_new'] for row in read_csv(folder / 'summary.csv')} == {'7.0'}


@pytest.fixture
def pythons_handler():
    """The handler of Ctrl-C as Python sets it, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('pythons_handler')
def test_ctrl_c_says_what_it_does_and_the_second_one_is_pythons(capsys):
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested == 'SIGINT'
        assert capsys.readouterr().err == 'SIGINT: stops at the next batch; once more to stop at once.\n'
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
