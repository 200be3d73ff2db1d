"""timm's contract, for every registered model: one that is registered tomorrow is tested without a line here.

Shapes are checked on the meta device, where the largest network costs nothing; numbers on the small networks.
"""

import copy
import functools
from unittest import mock

import pytest
import timm
import timm.data
import timm.optim
import torch
from torch import nn

from dit_timm.layers import ChannelQuadratic2d

MODELS = [name for name in timm.list_models('*dit_*') if timm.models.model_entrypoint(name).__module__.startswith(
    'dit_timm.')]
SMALL_PARAMETERS = 1_000_000
IN_MODULES = {
    'dit_convnext': 'dit_timm.models.dit_convnext',
    'dit_resnet': 'dit_timm.models.dit_resnet',
    'dit_resnet_cifar': 'dit_timm.models.dit_resnet_cifar',
}


def on_meta(name, **kwargs):
    # timm reads the rates of its drop paths from a tensor, which older releases make on the meta device too.
    rates_on_cpu = mock.patch.object(torch, 'linspace', functools.partial(torch.linspace, device='cpu'))
    with torch.device('meta'), rates_on_cpu:
        return timm.create_model(name, **kwargs)


def is_fixed(name):
    return bool(timm.models.get_pretrained_cfg(name).fixed_input_size)


def input_size(name):
    return timm.models.get_pretrained_cfg(name).input_size[-2:] if is_fixed(name) else (64, 64)


def images(name, batch=2, in_chans=3, device='cpu', size=None):
    return torch.randn(batch, in_chans, *(size or input_size(name)), device=device)


def randomise(model):
    """Give the quadratic terms a part in the function: at zero, a test could not see them."""
    for module in model.modules():
        if isinstance(module, ChannelQuadratic2d):
            nn.init.normal_(module.weight, std=0.3 / module.in_chs)
    return model


SMALL = [name for name in MODELS if sum(p.numel() for p in on_meta(name).parameters()) < SMALL_PARAMETERS]
ANY_SIZE = [name for name in MODELS if not is_fixed(name)]
each_model = pytest.mark.parametrize('name', MODELS)
each_small = pytest.mark.parametrize('name', SMALL)


def test_families():
    assert {'test_dit_convnext', 'test_dit_resnet', 'dit_resnet20'} <= set(SMALL)
    for size in ('atto', 'femto', 'pico', 'nano', 'tiny', 'small', 'base', 'large'):
        assert f'dit_convnext_{size}' in MODELS
    for depth in (18, 34, 50, 101, 152, 20, 32, 44, 56, 110):
        assert f'dit_resnet{depth}' in MODELS


@pytest.mark.parametrize('name, parameters', [
    ('dit_resnet20', 307674), ('dit_resnet56', 890970), ('dit_convnext_tiny', 29473864),
])
def test_parameter_counts_of_the_paper(name, parameters):
    assert sum(p.numel() for p in on_meta(name).parameters()) == parameters


@each_model
def test_classifier_and_pooling(name):
    model = on_meta(name)
    x = images(name, device='meta')
    assert all(p.device.type == 'meta' for p in model.parameters())
    assert model(x).shape == (2, model.num_classes)
    assert model.num_classes == model.pretrained_cfg['num_classes']
    features = model.forward_features(x)
    assert features.ndim == 4 and features.shape[1] == model.num_features
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert model.get_classifier().weight.shape == (model.num_classes, model.head_hidden_size)

    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, '')
    assert model(x).shape == features.shape
    # Older releases of timm make a new classifier where torch makes tensors, not where the old one was.
    with torch.device('meta'):
        model.reset_classifier(11, 'avg')
    assert model(x).shape == (2, 11) and model.num_classes == 11

    assert on_meta(name, num_classes=0)(x).shape == pooled.shape
    assert on_meta(name, num_classes=0, global_pool='')(x).shape == features.shape
    assert on_meta(name, num_classes=5)(x).shape == (2, 5)


@each_model
def test_quadratic_terms(name):
    model = on_meta(name)
    terms = {key: m for key, m in model.named_modules() if isinstance(m, ChannelQuadratic2d)}
    assert len(terms) == 1, 'the paper has one quadratic term in a network'
    (key, term), = terms.items()
    assert term.weight.shape == (term.out_chs, term.in_chs, term.in_chs)
    if 'convnext' in name:
        depth = len(model.stages[0].blocks)
        assert key == f'stages.0.blocks.{min(2, depth - 1)}.conv_dw.quadratic'
    elif is_fixed(name):
        assert key == 'layer2.0.quadratic'
    else:
        assert key == 'layer2.0.conv2.quadratic'


@each_model
def test_in_chans(name):
    model = on_meta(name, in_chans=1)
    assert model.forward_features(images(name, in_chans=1, device='meta')).shape[1] == model.num_features


@each_model
def test_unknown_argument(name):
    with pytest.raises(TypeError, match='no_such_argument'):
        on_meta(name, no_such_argument=1)


@each_model
def test_feature_maps(name):
    model = on_meta(name, features_only=True)
    x = images(name, device='meta')
    maps = model(x)
    assert len(maps) == len(model.feature_info.channels())
    for features, channels, reduction in zip(maps, model.feature_info.channels(), model.feature_info.reduction()):
        assert features.shape == (2, channels, x.shape[2] // reduction, x.shape[3] // reduction)
    last = on_meta(name, features_only=True, out_indices=(-1,))(x)
    assert len(last) == 1 and last[0].shape == maps[-1].shape


@each_model
def test_forward_intermediates_on_meta(name):
    model = on_meta(name)
    x = images(name, device='meta')
    final, maps = model.forward_intermediates(x)
    assert final.shape == model.forward_features(x).shape
    only = model.forward_intermediates(x, indices=2, intermediates_only=True)
    assert [m.shape for m in only] == [m.shape for m in maps[-2:]]
    kept = model.prune_intermediate_layers([0, 1])
    assert kept == [0, 1]
    pruned = model.forward_intermediates(x, indices=kept, intermediates_only=True, stop_early=True)
    assert [m.shape for m in pruned] == [m.shape for m in maps[:2]]


@each_model
def test_layer_decay_reaches_every_parameter(name):
    model = on_meta(name)
    groups = timm.optim.param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scales = {id(p): group['lr_scale'] for group in groups for p in group['params']}
    assert set(scales) == {id(p) for p in model.parameters()}
    assert len(set(scales.values())) > 3
    classifier, stem = model.get_classifier().weight, next(model.parameters())
    assert scales[id(classifier)] == 1. and scales[id(stem)] == min(scales.values())
    term = next(m for m in model.modules() if isinstance(m, ChannelQuadratic2d))
    assert scales[id(stem)] < scales[id(term.weight)] < 1.


@each_model
def test_drop_path(name):
    model = on_meta(name, drop_path_rate=0.3, drop_rate=0.2)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == 'DropPath']
    assert rates and max(rates) == pytest.approx(0.3) and rates == sorted(rates)


@each_model
def test_cfg(name):
    module = timm.models.model_entrypoint(name).__module__
    assert module in IN_MODULES.values(), 'list the module of a new family above'
    assert name in timm.list_models(module=module.rsplit('.', 1)[1])
    cfg = timm.models.get_pretrained_cfg(name)
    # The licence of weights of a base network is what timm says, nothing in some releases.
    assert cfg.license or (cfg.tag or '').endswith('_init')
    assert cfg.mean and cfg.std and cfg.classifier and cfg.first_conv
    model = on_meta(name)
    for first in [cfg.first_conv] if isinstance(cfg.first_conv, str) else cfg.first_conv:
        assert isinstance(model.get_submodule(first), nn.Conv2d)
    assert isinstance(model.get_submodule(cfg.classifier), nn.Linear)
    assert timm.data.resolve_model_data_config(model)['mean'] == tuple(cfg.mean)


@pytest.mark.parametrize('name', ANY_SIZE)
def test_any_input_size_on_meta(name):
    assert on_meta(name)(images(name, device='meta', size=(65, 97))).shape == (2, 1000)


@pytest.mark.parametrize('name', [name for name in SMALL if not is_fixed(name)])
@pytest.mark.parametrize('size', [(65, 97), (33, 32), (64, 160)])
def test_any_input_size(name, size):
    model = randomise(timm.create_model(name)).train()
    x = images(name, size=size)
    model(x).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.eval()
    assert model(x).isfinite().all()


@pytest.mark.parametrize('name', [name for name in MODELS if is_fixed(name)])
@pytest.mark.parametrize('size', [(64, 64), (48, 24), (33, 35)])
def test_img_size(name, size):
    model = on_meta(name, img_size=size)
    assert model(torch.zeros(2, 3, *size, device='meta')).shape == (2, 10)
    with pytest.raises(Exception, match=r'img_size'):
        model(torch.zeros(2, 3, size[0] + 4, size[1], device='meta'))
    with pytest.raises(Exception, match=r'img_size'):
        model(torch.zeros(2, 3, size[0], size[1] + 4, device='meta'))


@each_small
def test_every_parameter_has_a_gradient(name):
    model = randomise(timm.create_model(name)).train()
    model(images(name)).square().mean().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


@each_small
def test_the_quadratic_term_takes_part(name):
    model = timm.create_model(name).eval()
    for key, parameter in model.named_parameters():
        # Residual branches that begin at zero, or at 1e-6 as ConvNeXt's, would hide the term.
        if parameter.abs().max() < 1e-5 and 'quadratic' not in key:
            nn.init.constant_(parameter, 0.5)
    x = images(name)
    before = model(x)
    assert not torch.allclose(randomise(model)(x), before)


@each_small
def test_intermediates_are_the_features(name):
    model = randomise(timm.create_model(name)).eval()
    x = images(name)
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(model.forward_head(final), model(x))
    features_only = timm.create_model(name, features_only=True).eval()
    missing, _ = features_only.load_state_dict(
        {key.replace('stages.', 'stages_').replace('stem.', 'stem_') if 'convnext' in name else key: value
         for key, value in model.state_dict().items()}, strict=False,
    )
    assert not missing
    for one, other in zip(features_only(x)[-2:], maps[-2:]):
        torch.testing.assert_close(one, other)


@each_small
def test_gradient_checkpointing(name):
    model = randomise(timm.create_model(name)).train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    x = images(name)
    model(x).square().mean().backward()
    twin(x).square().mean().backward()
    for (key, one), other in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, key=key: f'{key}: {text}')


@each_small
def test_drop_path_trains(name):
    model = randomise(timm.create_model(name, drop_path_rate=0.5, drop_rate=0.5)).train()
    model(images(name)).square().mean().backward()
    x = images(name)
    model.eval()
    assert torch.equal(model(x), model(x))


@each_small
def test_channels_last(name):
    model = randomise(timm.create_model(name)).eval()
    x = images(name)
    before = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), before, rtol=1e-3, atol=1e-4)


@each_small
def test_bfloat16_autocast_trains(name):
    model = randomise(timm.create_model(name)).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = model(images(name)).float().square().mean()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@each_small
def test_state_dict_of_a_copy_restores_the_function(name):
    model = randomise(timm.create_model(name)).eval()
    twin = timm.create_model(name).eval()
    twin.load_state_dict(model.state_dict())
    x = images(name)
    assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize('kwargs, named', [
    (dict(transposed_quadratic=True, img_size=(32, 48)), 'square img_size'),
    (dict(global_pool='nonsense'), "'nonsense'"),
])
def test_wrong_arguments_of_the_cifar_networks(kwargs, named):
    with pytest.raises(ValueError, match=named):
        on_meta('dit_resnet20', **kwargs)


def test_plain_twin_of_the_cifar_network():
    model = timm.create_model('dit_resnet20', quadratic=False).eval()
    assert not any(isinstance(m, ChannelQuadratic2d) for m in model.modules())
    dendritic = timm.create_model('dit_resnet20').state_dict()
    assert set(dendritic) - set(model.state_dict()) == {
        'layer2.0.quadratic.weight', 'layer2.0.quadratic_norm.weight', 'layer2.0.quadratic_norm.bias',
    }
    # Without the norm over positions nothing fixes the size.
    assert model(torch.randn(1, 3, 40, 56)).shape == (1, 10)


@pytest.mark.parametrize('pool, multiplier', [('avg', 1), ('max', 1), ('avgmax', 1), ('catavgmax', 2)])
def test_pooling_of_the_cifar_networks(pool, multiplier):
    model = on_meta('dit_resnet20', global_pool=pool)
    assert model.head_hidden_size == 256 * multiplier
    assert model(images('dit_resnet20', device='meta')).shape == (2, 10)
