"""The weights that ship in the package."""

import csv
import hashlib
import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

import dit_timm
from dit_timm import ChannelQuadratic2d, available_backends, load_pretrained_checked
from dit_timm.cli import validate
from dit_timm.errors import DamagedFileError
from dit_timm.pretrained.golden import TOLERANCE, golden_difference
from dit_timm.training.environment import environment

WEIGHTS = Path(dit_timm.__file__).parent / 'weights'
ROOT = Path(__file__).parent.parent.parent
FILES = sorted(WEIGHTS.glob('*.safetensors'))
DATA = os.environ.get('DIT_TIMM_DATA')
NAMES = [path.stem for path in FILES]
each = pytest.mark.parametrize('name', NAMES)


def shipped_rows():
    with (ROOT / 'hub' / 'results' / 'shipped.csv').open(newline='') as file:
        return {row['weights']: row for row in csv.DictReader(file)}


def golden(name):
    return load_file(Path(__file__).parent / 'golden' / f'{name}.safetensors')


def test_the_list_of_sums_is_that_of_the_files():
    assert 'dit_resnet20.cifar10' in NAMES
    lines = (WEIGHTS / 'SHA256SUMS').read_text().splitlines()
    assert lines == [f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}' for path in FILES]
    assert sum(path.stat().st_size for path in FILES) <= 5e6
    assert {name: row['sha256'] for name, row in shipped_rows().items()} == {
        line.split()[1].removesuffix('.safetensors'): line.split()[0] for line in lines
    }


@each
def test_the_registry_knows_the_file(name):
    arch, tag = name.split('.')
    # The first is what pretrained=True means.
    assert next(iter(get_arch_pretrained_cfgs(arch))) == name
    assert get_pretrained_cfg(arch).tag == tag
    cfg = get_pretrained_cfg(name)
    assert Path(cfg.file) == WEIGHTS / f'{name}.safetensors'
    assert len(cfg.label_names) == cfg.num_classes == 10
    with safe_open(cfg.file, framework='pt') as file:
        metadata = file.metadata()
    assert (metadata['model'], metadata['tag'], metadata['licence']) == (arch, tag, cfg.license)
    assert json.loads(metadata['classes']) == list(cfg.label_names)


@each
@pytest.mark.parametrize('backend', [*available_backends('cpu'), None])
def test_golden_outputs_on_every_backend(name, backend):
    model = timm.create_model(name, pretrained=True).eval()
    term, = (module for module in model.modules() if isinstance(module, ChannelQuadratic2d))
    term.backend = backend
    assert golden_difference(model, golden(name)) < TOLERANCE / 10
    with torch.no_grad():
        term.weight.zero_()
    # Trained terms have a part in the answer, or the test above would not see them.
    assert golden_difference(model, golden(name)) > 10 * TOLERANCE


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@each
@pytest.mark.parametrize('backend', available_backends('cuda') if torch.cuda.is_available() else [])
def test_golden_outputs_on_a_gpu(name, backend):
    model = timm.create_model(name, pretrained=True).cuda().eval()
    term, = (module for module in model.modules() if isinstance(module, ChannelQuadratic2d))
    term.backend = backend
    assert golden_difference(model, golden(name)) < TOLERANCE


@each
def test_they_load_checked(name):
    model = load_pretrained_checked(name)
    assert golden_difference(model, golden(name)) < TOLERANCE / 10
    with pytest.raises(DamagedFileError, match='not ' + 64 * '0'):
        load_pretrained_checked(name, sha256=64 * '0')


@each
def test_as_a_start_for_other_data(name):
    trained = timm.create_model(name, pretrained=True)
    other = timm.create_model(name, pretrained=True, num_classes=3, in_chans=1)
    assert other.fc.out_features == 3 and other.conv1.in_channels == 1
    # timm adds up the channels in the float16 of the file.
    torch.testing.assert_close(other.conv1.weight, trained.conv1.weight.sum(1, keepdim=True), rtol=0, atol=2e-3)
    assert torch.equal(other.layer2[0].quadratic.weight, trained.layer2[0].quadratic.weight)
    features = timm.create_model(name, pretrained=True, features_only=True).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(features(x)[-1], trained.eval().forward_features(x))


@each
def test_at_another_size_the_maps_of_the_norm_are_interpolated(name):
    trained = timm.create_model(name, pretrained=True).layer2[0].quadratic_norm
    norm = timm.create_model(name, pretrained=True, img_size=64).layer2[0].quadratic_norm
    assert norm.weight.shape == (32, 32)
    # Pixel 7 of the doubled row lies at 3.25 of the other, pixel 9 of the column at 4.25.
    inner = trained.weight[4, 3] * 0.75 + trained.weight[4, 4] * 0.25
    below = trained.weight[5, 3] * 0.75 + trained.weight[5, 4] * 0.25
    torch.testing.assert_close(norm.weight[9, 7], 0.75 * inner + 0.25 * below)
    assert not torch.equal(norm.bias[::2, ::2], norm.bias[1::2, 1::2])


@each
def test_the_plain_twin_has_other_weights(name):
    with pytest.raises(ValueError, match='are a Dit network\'s, and quadratic=False makes the plain one'):
        timm.create_model(name, pretrained=True, quadratic=False)


@each
def test_the_network_with_transposed_maps_has_other_weights(name):
    with pytest.raises(ValueError, match='trained without transposed_quadratic=True, which makes another network'):
        timm.create_model(name, pretrained=True, transposed_quadratic=True)


# Real images are optional; a folder that is named must have them.
@pytest.mark.skipif(not DATA, reason='DIT_TIMM_DATA names no folder with real images')
@each
def test_the_accuracy_that_was_measured(name, tmp_path):
    results = tmp_path / 'results.csv'
    data = ['--data-dir', f'{DATA}/cifar10', '--val-split', 'test', '--device', 'cpu']
    assert validate.main(['--model', name, '--pretrained', *data, '--results-file', str(results)]) == 0
    with results.open(newline='') as file:
        found, = csv.DictReader(file)
    measured = shipped_rows()[name]
    assert found['images'] == measured['images'] == '10000'
    # To the last digit on the machine type that it was measured on; elsewhere sums have another order.
    tolerance = 0 if environment('cpu')['device'] == measured['device'] else 0.05
    for number in 'top1', 'top5':
        assert float(found[number]) == pytest.approx(float(measured[number]), rel=0, abs=tolerance)
    assert float(found['loss']) == pytest.approx(float(measured['loss']), abs=2e-3)
