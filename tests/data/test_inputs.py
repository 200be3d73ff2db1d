"""Images of other channels and shapes, from training to the Hub: `--in-chans`, `--input-size`, `--input-img-mode`."""

import csv
import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from dit_timm.cli import predict, train, validate
from dit_timm.data.inputs import image_mode, input_config
from hub import card
from hub.export import export
from hub.run import read_run

SMALL = [
    '--model', 'test_dit_resnet', '--batch-size', '6', '--workers', '0', '--lr', '0.01', '--epochs', '1', '--device',
    'cpu', '--scale', '1', '1', '--ratio', '1', '1', '--color-jitter', '0',
]


@pytest.fixture
def greys(write_greys):
    return write_greys(train=(6, 6, 6), validation=(4, 4, 4))


def trained(greys, tmp_path, *options):
    """The folder of a run."""
    words = ['--data-dir', str(greys), *SMALL, '--output', str(tmp_path), '--experiment', 'run']
    train.main([*words, '--data-cache', str(tmp_path / 'cache'), *options])
    return tmp_path / 'run'


def logits_of(model, greys, mode, config):
    """Logits and labels of the validation images, without anything of the scripts."""
    transform = timm.data.create_transform(**config)
    paths = sorted((greys / 'validation').rglob('*.png'))
    with torch.no_grad():
        logits = torch.cat([model(transform(Image.open(path).convert(mode))[None]) for path in paths])
    return logits, torch.tensor([int(path.parent.name[-1]) for path in paths])


@pytest.mark.parametrize('options, mode, size, statistics', [
    (['--in-chans', '1', '--img-size', '32'], 'L', (1, 32, 32), {}),
    (['--in-chans', '1', '--img-size', '32', '--data-on-device'], 'L', (1, 32, 32), {}),
    (['--input-size', '4', '32', '24', '--mean', '0.5', '--std', '0.25'], 'RGBA', (4, 32, 24),
     {'mean': (0.5,) * 4, 'std': (0.25,) * 4}),
    (['--img-size', '32', '--input-img-mode', 'HSV'], 'HSV', (3, 32, 32), {}),
    (['--model-kwargs', 'in_chans=1', '--img-size', '32', '--aa', 'rand-m9-n3', '--scale', '0.5', '1'], 'L',
     (1, 32, 32), {}),
])
def test_a_run_with_other_inputs_is_evaluated_and_used_without_options(
        greys, tmp_path, capsys, options, mode, size, statistics):
    run = trained(greys, tmp_path, *options)
    capsys.readouterr()
    results = tmp_path / 'results.csv'
    assert validate.main(['--checkpoint', str(run), '--results-file', str(results)]) == 0
    with results.open() as file:
        loss = float(next(csv.DictReader(file))['loss'])
    model = timm.create_model('test_dit_resnet', num_classes=3, in_chans=size[0]).eval()
    model.load_state_dict(load_file(run / 'model.safetensors'))
    cfg = model.pretrained_cfg
    average = {name: (sum(cfg[name]) / 3,) for name in ('mean', 'std')} if size[0] == 1 else {}
    config = {
        'input_size': size, **{name: cfg[name] for name in ('mean', 'std', 'interpolation', 'crop_pct')}, **average,
        **statistics,
    }
    logits, labels = logits_of(model, greys, mode, config)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)

    image = greys / 'validation' / 'class2' / '0.png'
    capsys.readouterr()
    assert predict.main([str(image), '--checkpoint', str(run), '--topk', '3']) == 0
    place = sorted((greys / 'validation').rglob('*.png')).index(image)
    printed = capsys.readouterr().out
    assert all(f'{100 * share:.2f} %' in printed for share in logits[place].softmax(0).tolist())


def test_an_export_of_one_channel_takes_one_channel(greys, tmp_path):
    run = read_run(trained(greys, tmp_path, '--in-chans', '1', '--img-size', '32'))
    folder = export(run, tmp_path / 'export', 'greys', 'mit')
    written = json.loads((folder / 'config.json').read_text())['pretrained_cfg']
    assert written['input_size'] == [1, 32, 32] and len(written['mean']) == len(written['std']) == 1
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    golden = load_file(folder / 'golden.safetensors')
    assert golden['input'].shape[1] == 1
    with torch.no_grad():
        torch.testing.assert_close(model(golden['input']), golden['logits'], rtol=1e-4, atol=1e-5)
    assert "convert('L')" in card.write_card(run, folder, 'me/greys', 'greys').read_text()


def test_transparency_reaches_a_network_of_four_channels(greys, tmp_path):
    # A class is nothing but how transparent its images are.
    for split in ('train', 'validation'):
        for label in range(3):
            for path in (greys / split / f'class{label}').iterdir():
                Image.new('RGBA', (32, 32), (90, 90, 90, 100 * label)).save(path)
    run = trained(greys, tmp_path, '--in-chans', '4', '--img-size', '32', '--no-aug', '--warmup-epochs', '0')
    model = timm.create_model('test_dit_resnet', num_classes=3, in_chans=4).eval()
    model.load_state_dict(load_file(run / 'model.safetensors'))
    config = input_config({'img_size': 32}, model)
    logits, labels = logits_of(model, greys, 'RGBA', config)
    with (run / 'results.csv').open() as file:
        loss = float(next(csv.DictReader(file))['loss'])
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)


@pytest.mark.parametrize('options, message', [
    (['--in-chans', '1', '--input-size', '3', '32', '32'], '--in-chans 1 and --input-size 3 32 32 differ'),
    (['--img-size', '16', '--input-size', '3', '32', '32'], '--img-size 16 and --input-size 3 32 32 differ'),
    (['--in-chans', '1', '--mean', '0.1', '0.2', '0.3'], '--mean has 3 values, 0.1 0.2 0.3: it takes one, or one for'),
    (['--in-chans', '5'], 'takes 5 channels, and images have 1 2 3 4'),
    (['--in-chans', '1', '--input-img-mode', 'RGB'], '--input-img-mode RGB has 3 channels; the network takes 1'),
    (['--in-chans', '3', '--model-kwargs', 'in_chans=1'], '3 channels are asked for, but the network has 1'),
])
def test_inputs_that_contradict_each_other(greys, tmp_path, options, message):
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        trained(greys, tmp_path, *options)


@pytest.mark.parametrize('name', [
    'resnet18', 'dit_resnet20', 'dit_resnet18', 'dit_convnext_atto', 'vit_tiny_patch16_224',
])
def test_the_config_has_the_channels_of_the_network(name):
    with torch.device('meta'):
        model = timm.create_model(name, in_chans=2)
    config = input_config({}, model)
    assert config['input_size'] == (2, *model.pretrained_cfg['input_size'][1:])
    assert config['mean'] == pytest.approx([sum(model.pretrained_cfg['mean']) / 3] * 2)
    assert image_mode({}, 2) == 'LA'
