"""add_dendrites on timm's own CNNs."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from dit_timm import DitConv2d, add_dendrites
from dit_timm.layers import ChannelQuadratic2d

# Model, a target, and what the target's class is there.
CASES = [
    ('resnet18', 'layer2.0.conv2', 'Conv2d'),
    ('resnet18', 'layer2.0.conv1', 'Conv2d'),
    ('convnext_atto', 'stages.0.blocks.1.conv_dw', 'Conv2d'),
    ('tf_efficientnet_b0', 'blocks.1.0.conv_dw', 'Conv2dSame'),
    ('resnetv2_50x1_bit', 'stages.1.blocks.0.conv2', 'StdConv2d'),
    ('nf_regnet_b0', 'stages.0.0.conv2', 'ScaledStdConv2d'),
]
each_case = pytest.mark.parametrize('name, target, class_name', CASES)


def small(name):
    return timm.create_model(name, num_classes=7).eval()


@each_case
def test_function_is_unchanged(name, target, class_name):
    model = small(name)
    conv = model.get_submodule(target)
    assert type(conv).__name__ == class_name, 'the case no longer tests what it is there for'
    x = torch.randn(1, 3, 64, 96)
    before, state, weight = model(x), copy.deepcopy(model.state_dict()), conv.weight
    assert add_dendrites(model, target) is model
    assert torch.equal(model(x), before)
    # The module object, its parameters and their names stay; one name is new.
    assert model.get_submodule(target) is conv and conv.weight is weight
    after = model.state_dict()
    assert set(after) - set(state) == {f'{target}.quadratic.weight'}
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert isinstance(conv, nn.Conv2d) and type(conv).__name__ == f'Dit{class_name}'


@each_case
def test_the_term_is_added_to_the_output_of_the_convolution(name, target, class_name):
    model = small(name)
    conv = model.get_submodule(target)
    captured = []
    handle = conv.register_forward_hook(lambda module, args, output: captured.append((args[0], output)))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        model(x)
        add_dendrites(model, target)
        nn.init.normal_(conv.quadratic.weight, std=0.1)
        model(x)
    handle.remove()
    (before_in, before_out), (after_in, after_out) = captured
    assert torch.equal(before_in, after_in)
    # Strides are tested with DitConv2d; here, that the term sees all channels of the input, groups or none.
    if conv.stride == (1, 1):
        q = torch.einsum('nihw,oij,njhw->nohw', after_in, conv.quadratic.weight.detach(), after_in)
        torch.testing.assert_close(after_out, before_out + q, rtol=1e-3, atol=1e-3)
    else:
        assert not torch.allclose(after_out, before_out)


@each_case
def test_gradients_reach_the_new_weight(name, target, class_name):
    model = add_dendrites(small(name), target)
    # timm starts some residual branches and classifiers at zero, which would stop every gradient on its way.
    for key, parameter in model.named_parameters():
        if not parameter.any() and 'quadratic' not in key:
            nn.init.normal_(parameter, std=0.5)
    model(torch.randn(1, 3, 64, 96)).square().sum().backward()
    grad = model.get_submodule(target).quadratic.weight.grad
    assert grad.isfinite().all() and grad.abs().max() > 0
    scale = grad.abs().max().item()
    torch.testing.assert_close(grad, grad.mT, rtol=1e-4, atol=1e-5 * scale)


def test_hooks_mode_and_dtype_are_kept():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).double().eval()
    calls = []
    model[0].register_forward_hook(lambda *args: calls.append('forward'))
    model[0].register_forward_pre_hook(lambda *args: calls.append('before'))
    model[0].weight.requires_grad_(False)
    add_dendrites(model, '0')
    model(torch.randn(1, 3, 5, 5, dtype=torch.float64))
    assert calls == ['before', 'forward']
    assert model[0].quadratic.weight.dtype == torch.float64
    assert not model[0].weight.requires_grad and model[0].quadratic.weight.requires_grad


@pytest.mark.parametrize('training', [True, False])
def test_mode_is_kept(training):
    # A norm with statistics in training mode would go on learning inside a network that is in eval mode.
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).train(training)
    add_dendrites(model, '0', quadratic_norm=nn.BatchNorm2d)
    assert {name: module.training for name, module in model.named_modules()} == {
        name: training for name, _ in model.named_modules()
    }


def test_meta_device():
    with torch.device('meta'):
        model = timm.create_model('resnet18')
    add_dendrites(model, 'layer1.0.conv1')
    assert model.layer1[0].conv1.quadratic.weight.device.type == 'meta'


def test_patterns_and_lists():
    def dendritic(targets):
        model = add_dendrites(small('resnet18'), targets)
        return [name for name, module in model.named_modules() if isinstance(module, DitConv2d)]

    assert dendritic('layer2.*.conv2') == ['layer2.0.conv2', 'layer2.1.conv2']
    assert dendritic('layer[12].0.conv?') == [f'layer{i}.0.conv{j}' for i in (1, 2) for j in (1, 2)]
    assert dendritic(['conv1', 'layer4.1.conv1']) == ['conv1', 'layer4.1.conv1']
    # A convolution named twice has one dendrite; other modules under a pattern are passed over.
    assert dendritic(['layer2.0.conv2', 'layer2.*.conv2']) == ['layer2.0.conv2', 'layer2.1.conv2']
    assert dendritic(['layer3.1*']) == ['layer3.1.conv1', 'layer3.1.conv2']


def test_norm_and_backend_are_handed_on():
    model = add_dendrites(small('resnet18'), 'conv1', quadratic_norm='instance', backend='reference')
    assert type(model.conv1.quadratic_norm).__name__ == 'InstanceNorm2d'
    assert model.conv1.quadratic.backend == 'reference'


@pytest.mark.parametrize('targets, error, fragments', [
    ('layer2.0.conv3', ValueError, ["'layer2.0.conv3'", 'layer2.0.conv2']),
    ('layr2.0.conv2', ValueError, ["'layr2.0.conv2'", 'layer2.0.conv2']),
    ('layer9.*.conv2', ValueError, ["'layer9.*.conv2'", 'matches no convolution', 'conv2']),
    ('layer1.*.bn1', ValueError, ["'layer1.*.bn1'", 'matches no convolution']),
    ([], ValueError, ['targets']),
    ('fc', TypeError, ["'fc'", 'Linear', 'Conv2d']),
    ('layer2.0', TypeError, ["'layer2.0'", 'BasicBlock', 'layer2.0.conv1']),
    ('layer1.0.bn1', TypeError, ["'layer1.0.bn1'", 'BatchNorm2d', 'layer1.0.conv1']),
])
@pytest.mark.parametrize('first', [None, 'layer1.0.conv1'])
def test_errors_leave_the_model_alone(targets, error, fragments, first):
    model = small('resnet18')
    keys = list(model.state_dict())
    if first and targets:
        targets = [first, targets]
    with pytest.raises(error) as caught:
        add_dendrites(model, targets)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)
    assert list(model.state_dict()) == keys
    assert not any(isinstance(module, ChannelQuadratic2d) for module in model.modules())


def test_a_second_dendrite_is_refused():
    model = add_dendrites(small('resnet18'), 'layer2.0.conv2')
    keys = list(model.state_dict())
    with pytest.raises(TypeError, match="'layer2.0.conv2'.*already"):
        add_dendrites(model, ['layer1.0.conv1', 'layer2.0.conv2'])
    assert list(model.state_dict()) == keys


def test_wrong_norm_leaves_the_model_alone():
    model = small('resnet18')
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match='quadratic_norm'):
        add_dendrites(model, 'layer2.*.conv2', quadratic_norm='nonsense')
    assert list(model.state_dict()) == keys
    assert type(model.layer2[0].conv2) is nn.Conv2d


def test_unknown_subclass_and_wide_padding_are_refused():
    class Own(nn.Conv2d):
        pass

    for conv, reason in ((Own(3, 4, 3), 'Own'), (nn.Conv2d(3, 4, 3, padding=2), 'padding')):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), conv)
        with pytest.raises(TypeError, match=reason):
            add_dendrites(model, ['0', '1'])
        assert type(model[0]) is nn.Conv2d and type(model[1]) is type(conv)


def test_model_without_convolutions():
    with pytest.raises(ValueError, match='no convolution'):
        add_dendrites(nn.Sequential(nn.Linear(3, 4)), 'conv')


@each_case
def test_copy_and_pickle(name, target, class_name):
    model = add_dendrites(small(name), target)
    nn.init.normal_(model.get_submodule(target).quadratic.weight, std=0.01)
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    assert torch.equal(copy.deepcopy(model)(x), before)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), before)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name, target', [
    ('resnet18', 'layer2.0.conv1'), ('convnext_atto', 'stages.0.blocks.1.conv_dw'),
])
def test_torchscript_and_fx(name, target):
    model = add_dendrites(small(name), target)
    nn.init.normal_(model.get_submodule(target).quadratic.weight, std=0.01)
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), before)
