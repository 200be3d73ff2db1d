"""Checkpoints of the authors' training load, and give what a restatement of their formulas gives.

The restatement is functional and knows nothing of dit_timm: it computes from the checkpoint's own names.
"""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

CHANNELS = (16, 32, 64)


def random_cifar_checkpoint(blocks):
    """Weights under the authors' names, all of them random, running statistics too."""
    state = {}

    def conv(name, out_chs, in_chs, size):
        state[f'{name}.weight'] = torch.randn(out_chs, in_chs, size, size) / (in_chs * size * size) ** 0.5

    def bn(name, chs):
        state.update({
            f'{name}.weight': torch.rand(chs) + 0.5, f'{name}.bias': torch.randn(chs) * 0.3,
            f'{name}.running_mean': torch.randn(chs) * 0.3, f'{name}.running_var': torch.rand(chs) + 0.5,
            f'{name}.num_batches_tracked': torch.tensor(7),
        })

    conv('conv1', 16, 3, 3)
    bn('bn1', 16)
    in_chs = 16
    for stage, chs in enumerate(CHANNELS, start=1):
        for block in range(blocks):
            name = f'layer{stage}.{block}'
            conv(f'{name}.conv1', chs, in_chs, 3)
            bn(f'{name}.bn1', chs)
            conv(f'{name}.conv2', chs, chs, 3)
            bn(f'{name}.bn2', chs)
            if in_chs != chs:
                conv(f'{name}.shortcut.0', chs, in_chs, 1)
                bn(f'{name}.shortcut.1', chs)
            in_chs = chs
    state['layer2.0.quadratic_layer.quadratic'] = torch.randn(32, 32 * 32) / 16
    state['layer2.0.ln_in.weight'] = torch.rand(16, 16) + 0.5
    state['layer2.0.ln_in.bias'] = torch.randn(16, 16) * 0.3
    state['linear.weight'] = torch.randn(10, 256) / 16
    state['linear.bias'] = torch.randn(10)
    return state


def cifar_logits(state, x, blocks, transpose):
    """The network of the paper: a half sum with the outer product of every pixel in layer2.0, a head on a 2x2 grid."""
    state = {key: value.to(x.dtype) if value.is_floating_point() else value for key, value in state.items()}

    def bn(name, x):
        p = {key: state[f'{name}.{key}'] for key in ('running_mean', 'running_var', 'weight', 'bias')}
        return F.batch_norm(x, **p, training=False)

    def conv(name, x, stride=1, padding=1):
        return F.conv2d(x, state[f'{name}.weight'], stride=stride, padding=padding)

    x = bn('bn1', conv('conv1', x)).relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f'layer{stage}.{block}'
            stride = 2 if stage > 1 and block == 0 else 1
            h = bn(f'{name}.bn1', conv(f'{name}.conv1', x, stride)).relu()
            y = bn(f'{name}.bn2', conv(f'{name}.conv2', h))
            if f'{name}.quadratic_layer.quadratic' in state:
                z = F.layer_norm(h, (16, 16), state[f'{name}.ln_in.weight'], state[f'{name}.ln_in.bias'])
                weight = state[f'{name}.quadratic_layer.quadratic']
                q = torch.zeros_like(y)
                for row in range(16):
                    for col in range(16):
                        pixel = z[:, :, row, col]
                        outer = pixel[:, :, None] * pixel[:, None, :]
                        place = (col, row) if transpose else (row, col)
                        q[:, :, place[0], place[1]] = outer.flatten(1) @ weight.t()
                y = (y + q) / 2
            if f'{name}.shortcut.0.weight' in state:
                x = bn(f'{name}.shortcut.1', conv(f'{name}.shortcut.0', x, stride, padding=0))
            x = (y + x).relu()
    return F.linear(F.avg_pool2d(x, 4).flatten(1), state['linear.weight'], state['linear.bias'])


def as_they_save(state):
    return {'epoch': 12, 'state_dict': {f'module.{key}': value for key, value in state.items()}, 'optimizer': {}}


@pytest.mark.parametrize('name, blocks', [('dit_resnet20', 3), ('dit_resnet32', 5)])
@pytest.mark.parametrize('transposed', [True, False])
def test_cifar_checkpoint(name, blocks, transposed, caplog):
    state = random_cifar_checkpoint(blocks)
    model = timm.create_model(
        name, pretrained=True, transposed_quadratic=transposed,
        pretrained_cfg_overlay=dict(state_dict=as_they_save(state)),
    ).double().eval()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    logits = model(x)
    assert ('transposed_quadratic=True' in caplog.text) != transposed
    torch.testing.assert_close(logits, cifar_logits(state, x, blocks, transposed), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(logits, cifar_logits(state, x, blocks, not transposed), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_cifar_checkpoint_from_a_file(suffix, tmp_path):
    state = random_cifar_checkpoint(3)
    path = str(tmp_path / f'model.{suffix}')
    if suffix == 'pth':
        torch.save(as_they_save(state), path)
    else:
        save_file(state, path)
    model = timm.create_model('dit_resnet20', pretrained=True, pretrained_cfg_overlay=dict(file=path)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), cifar_logits(state, x, 3, False), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('key', ['layer1.0.conv1.weight', 'layer2.0.quadratic_layer.quadratic'])
def test_incomplete_cifar_checkpoint_is_refused(key):
    state = random_cifar_checkpoint(3)
    del state[key]
    with pytest.raises(RuntimeError, match='Missing key'):
        timm.create_model('dit_resnet20', pretrained=True, pretrained_cfg_overlay=dict(state_dict=as_they_save(state)))


def test_imagenet_block():
    # In the authors' ConvNeXt the quadratic is a module of the block, beside conv_dw.
    model = timm.create_model('dit_convnext_tiny', num_classes=4)
    quadratic = torch.randn(96, 96 * 96) / 96
    state = {key: torch.randn_like(value) * 0.02 for key, value in model.state_dict().items() if 'quadratic' not in key}
    model = timm.create_model(
        'dit_convnext_tiny', num_classes=4, pretrained=True, pretrained_cfg_overlay=dict(
            num_classes=4, state_dict=as_they_save({**state, 'stages.0.blocks.2.quadratic.quadratic': quadratic}),
        ),
    ).double().eval()
    x = torch.randn(1, 96, 5, 6, dtype=torch.float64)
    expected = F.conv2d(
        x, state['stages.0.blocks.2.conv_dw.weight'].double(), state['stages.0.blocks.2.conv_dw.bias'].double(),
        padding=3, groups=96,
    )
    for row in range(5):
        for col in range(6):
            pixel = x[0, :, row, col]
            expected[0, :, row, col] += quadratic.double() @ torch.outer(pixel, pixel).flatten()
    torch.testing.assert_close(model.stages[0].blocks[2].conv_dw(x), expected, rtol=1e-9, atol=1e-9)
    for key, value in state.items():
        torch.testing.assert_close(model.state_dict()[key], value.double(), rtol=0, atol=0)
