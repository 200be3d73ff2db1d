"""Variants of a Dit network: what is trained beside it."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from dit_timm import ChannelQuadratic2d
from dit_timm.cli import train
from dit_timm.training.model import build_model
from dit_timm.training.variants import MlpTerm


def built(*words):
    args = train.parse_args(['--device', 'cpu', *words])
    args.num_classes = 3
    torch.manual_seed(0)
    return build_model(args).eval()


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize('model, size', [('dit_resnet20', 32), ('test_dit_resnet', 64), ('dit_convnext_atto', 64)])
def test_a_control_has_as_many_parameters_and_begins_as_the_network_does(model, size):
    dit, control = built('--model', model), built('--model', model, '--variant', 'mlp')
    # Of as many inputs as outputs it is exact.
    assert parameters(control) == parameters(dit)
    images = torch.randn(2, 3, size, size)
    assert torch.equal(control(images), dit(images))
    term, = (module for module in control.modules() if isinstance(module, MlpTerm))
    assert not any(isinstance(module, ChannelQuadratic2d) for module in control.modules())
    assert not term(torch.randn(1, term.conv1.in_channels, 4, 4)).any() and term.conv1.weight.any()


def test_a_control_samples_where_the_term_does():
    term = ChannelQuadratic2d(4, 6, stride=2, offset=1)
    control, x = MlpTerm(term), torch.randn(2, 4, 9, 8)
    assert control(x).shape == term(x).shape
    torch.nn.init.normal_(control.conv2.weight)
    expected = torch.einsum('om,nmhw->nohw', control.conv2.weight[..., 0, 0], torch.einsum(
        'mc,nchw->nmhw', control.conv1.weight[..., 0, 0], x[:, :, 1::2, 1::2]).relu())
    torch.testing.assert_close(control(x), expected)


@pytest.mark.parametrize('model, twin', [
    ('test_dit_resnet', 'test_resnet'), ('dit_convnext_atto', 'convnext_atto'), ('test_resnet', 'test_resnet'),
])
def test_the_plain_twin_of_a_network_of_timm_is_timm_s(model, twin):
    plain = built('--model', model, '--variant', 'plain')
    assert type(plain) is type(timm.create_model(twin)) and not any(
        isinstance(module, ChannelQuadratic2d) for module in plain.modules()
    )


def test_the_cifar_networks_have_their_own_twin_and_transposed_maps():
    plain = built('--model', 'dit_resnet20', '--variant', 'plain')
    assert plain.state_dict().keys() == timm.create_model('dit_resnet20', quadratic=False).state_dict().keys()
    assert built('--model', 'dit_resnet20', '--variant', 'transposed').layer2[0].transposed_quadratic


def test_what_has_no_term_has_no_control(capsys):
    for variant in ('mlp', 'frozen'):
        with pytest.raises(ValueError, match=f'--variant {variant} needs a network with a quadratic term'):
            built('--model', 'test_resnet', '--variant', variant)
    with pytest.raises(SystemExit):
        train.parse_args(['--variant', 'frozen', '--train-only', 'fc'])
    assert 'leave one of them out' in capsys.readouterr().err


def test_frozen_weights_stay_zero_and_all_else_is_trained(write_greys, tmp_path):
    data = write_greys(train=(6, 6, 6), validation=(2, 2, 2))
    for variant in ('dit', 'frozen'):
        train.main([
            '--data-dir', str(data), '--model', 'dit_resnet20', '--variant', variant, '--epochs', '1', '--lr', '0.05',
            '--batch-size', '6', '--workers', '0', '--warmup-epochs', '0', '--device', 'cpu', '--output', str(tmp_path),
            '--experiment', variant, '--decay-norms', '--weight-decay', '0.1',
        ])
    begun = built('--model', 'dit_resnet20', '--seed', '42').state_dict()
    weights = {name: load_file(tmp_path / name / 'model.safetensors') for name in ('dit', 'frozen')}
    term = 'layer2.0.quadratic.weight'
    assert not weights['frozen'][term].any() and weights['dit'][term].any()
    for name in ('conv1.weight', 'fc.bias', 'layer2.0.quadratic_norm.weight'):
        assert not torch.equal(weights['frozen'][name], begun[name]), name
