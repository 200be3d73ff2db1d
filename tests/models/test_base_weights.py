"""`_init` tags: the base network's weights and zero quadratic terms, bit for bit the function of the base network."""

import logging
import os
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

FAMILIES = ('dit_timm.models.dit_convnext', 'dit_timm.models.dit_resnet')
MODELS = [n for n in timm.list_models('*dit_*') if timm.models.model_entrypoint(n).__module__ in FAMILIES]
PUBLISHED = [name for name in MODELS if not name.startswith('test_')]
SMALL = ['test_dit_convnext', 'test_dit_resnet']
# Initialising the weights of the largest networks takes seconds each, and adds no code to what the others test.
TOO_LARGE = ('dit_convnext_base', 'dit_convnext_large')


def base_of(name):
    return name.replace('dit_', '')


def overlay(name, **kwargs):
    return dict(dict(tag='x_init', architecture=name, hf_hub_id=f'timm/{base_of(name)}.x'), **kwargs)


def random_base(name, **kwargs):
    base = timm.create_model(base_of(name), pretrained=False, **kwargs).eval()
    for module in base.modules():
        # Also what starts at zero or one takes part.
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean)
    return base


@pytest.mark.parametrize('name', [name for name in MODELS if name not in TOO_LARGE])
def test_logits_are_those_of_the_base(name):
    base = random_base(name)
    model = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay(name, state_dict=base.state_dict()),
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(x), base(x))


@pytest.mark.parametrize('name', SMALL)
def test_from_a_file_with_other_classes_and_channels(name, tmp_path):
    base = random_base(name)
    path = str(tmp_path / 'base.safetensors')
    save_file(base.state_dict(), path)
    model = timm.create_model(
        name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay(name, file=path),
    ).eval()
    base.reset_classifier(0)
    x = torch.randn(1, 3, 65, 97)
    assert torch.equal(model(x), base(x))
    gray = timm.create_model(name, pretrained=True, in_chans=1, pretrained_cfg_overlay=overlay(name, file=path))
    assert gray(torch.randn(2, 1, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize('name', SMALL)
def test_feature_maps_are_those_of_the_base(name):
    state_dict = random_base(name).state_dict()
    model = timm.create_model(
        name, pretrained=True, features_only=True, pretrained_cfg_overlay=overlay(name, state_dict=state_dict),
    ).eval()
    base = timm.create_model(
        base_of(name), pretrained=True, features_only=True, pretrained_cfg_overlay=dict(state_dict=state_dict),
    ).eval()
    x = torch.randn(1, 3, 65, 97)
    for one, other in zip(model(x), base(x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('change', ['missing', 'unexpected', 'no _init tag', 'shape'])
def test_loads_stay_strict(name, change):
    state_dict = dict(random_base(name).state_dict())
    key = next(k for k in state_dict if k.endswith('weight') and state_dict[k].ndim == 4)
    cfg, named = overlay(name), key
    if change == 'missing':
        del state_dict[key]
    elif change == 'unexpected':
        named = 'no.such.weight'
        state_dict[named] = torch.zeros(3)
    elif change == 'shape':
        state_dict[key] = state_dict[key][..., :1]
    else:
        named = 'quadratic.weight'
        cfg['tag'] = 'trained'
    with pytest.raises(RuntimeError, match=named):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(cfg, state_dict=state_dict))


@pytest.mark.parametrize('name', SMALL)
def test_log_says_that_the_weights_are_not_dit_trained(name, caplog):
    with caplog.at_level(logging.INFO, logger='dit_timm'):
        timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay(name, state_dict=random_base(name).state_dict()),
        )
    records = [record for record in caplog.records if record.name.startswith('dit_timm')]
    assert len(records) == 1 and records[0].levelno == logging.INFO
    text = records[0].getMessage()
    assert f'timm/{base_of(name)}.x' in text and 'quadratic' in text and 'zero' in text and name in text


@pytest.mark.parametrize('name', PUBLISHED)
def test_tags_follow_those_of_the_base(name):
    tags = timm.models.get_arch_pretrained_cfgs(name)
    bases = timm.models.get_arch_pretrained_cfgs(base_of(name))
    expected = {cfg.tag: cfg for cfg in bases.values() if cfg.hf_hub_id}
    ours = {cfg.tag: cfg for cfg in tags.values() if cfg.tag.endswith('_init')}
    assert set(ours) == {f'{tag}_init' for tag in expected} and expected
    for tag, base in expected.items():
        cfg = ours[f'{tag}_init']
        for field in (
                'mean', 'std', 'crop_pct', 'test_crop_pct', 'interpolation', 'license', 'num_classes', 'classifier',
                'input_size', 'test_input_size', 'first_conv', 'pool_size', 'crop_mode',
        ):
            assert getattr(cfg, field) == getattr(base, field), f'{tag}: {field}'
        assert cfg.architecture == name
        assert (cfg.hf_hub_filename or 'safetensors').endswith('safetensors') and not cfg.url and not cfg.file
        repo = base.hf_hub_id
        assert cfg.hf_hub_id == (f'{repo}{base_of(name)}.{tag}' if repo.endswith('/') else repo)
        assert 'quadratic' in cfg.description and 'Not trained as a Dit-CNN' in cfg.description


@pytest.mark.parametrize('name', PUBLISHED)
def test_default_tag_is_that_of_the_base(name):
    default = timm.models.get_pretrained_cfg(base_of(name))
    assert timm.models.get_pretrained_cfg(name).tag == f'{default.tag}_init'


def test_offline_error_says_what_to_do(tmp_path):
    # In a process of its own: the Hub library reads its cache folder when it is imported.
    result = subprocess.run(
        [sys.executable, '-c', "import timm; timm.create_model('dit_resnet18', pretrained=True)"],
        env={**os.environ, 'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path), 'HF_HUB_CACHE': str(tmp_path / 'hub')},
        capture_output=True, text=True,
    )
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    repo = timm.models.get_pretrained_cfg('resnet18').hf_hub_id
    assert last.startswith('dit_timm.errors.UnavailableError: ')
    for fragment in ('dit_resnet18', repo, 'pretrained_cfg_overlay', 'model.safetensors', 'HF_HUB_OFFLINE'):
        assert fragment in last


@pytest.mark.parametrize('name', [*SMALL, 'dit_resnet20'])
def test_missing_file_is_named(name, tmp_path):
    path = str(tmp_path / 'none.safetensors')
    with pytest.raises(OSError) as caught:
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=path))
    assert path in str(caught.value) and name in str(caught.value)
