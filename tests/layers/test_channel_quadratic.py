"""ChannelQuadratic2d against the formula at every sampled position."""

import pytest
import torch
import torch.nn.functional as F

from dit_timm import ChannelQuadratic2d


def per_pixel(x, weight, stride, offset):
    """The term at each sampled position of (N, C, H, W), written out; a map without positions is not asked for."""
    n, _, height, width = x.shape
    rows, cols = range(offset[0], height, stride[0]), range(offset[1], width, stride[1])
    output = torch.zeros(n, weight.shape[0], len(rows), len(cols), dtype=x.dtype)
    for a, h in enumerate(rows):
        for b, w in enumerate(cols):
            for image in range(n):
                pixel = x[image, :, h, w]
                for o in range(weight.shape[0]):
                    output[image, o, a, b] = pixel @ weight[o] @ pixel
    return output


def randomised(layer):
    torch.nn.init.normal_(layer.weight)
    return layer.double()


@pytest.mark.parametrize('stride, offset', [
    (1, 0), (2, 0), (2, 1), (3, 2), ((1, 2), (0, 1)), ((2, 1), (1, 0)), (4, 1),
])
@pytest.mark.parametrize('size', [(5, 8), (7, 6)])
@pytest.mark.parametrize('in_chs, out_chs', [(1, 2), (3, 1), (4, 4)])
def test_equals_formula(stride, offset, size, in_chs, out_chs):
    layer = randomised(ChannelQuadratic2d(in_chs, out_chs, stride=stride, offset=offset))
    x = torch.randn(2, in_chs, *size, dtype=torch.float64)
    pair = [value if isinstance(value, tuple) else (value, value) for value in (stride, offset)]
    expected = per_pixel(x, layer.weight.detach(), *pair)
    torch.testing.assert_close(layer(x).detach(), expected)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)).detach(), expected)


def test_without_batch():
    layer = randomised(ChannelQuadratic2d(3, 5, stride=2, offset=1))
    x = torch.randn(3, 6, 7, dtype=torch.float64)
    output = layer(x)
    assert output.shape == (5, 3, 3)
    torch.testing.assert_close(output, layer(x[None])[0])


def test_output_is_channels_last():
    output = randomised(ChannelQuadratic2d(3, 5))(torch.randn(2, 3, 4, 6, dtype=torch.float64))
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_starts_at_zero(poisoned_empty):
    layer = ChannelQuadratic2d(3)
    assert layer.weight.shape == (3, 3, 3)
    assert torch.equal(layer.weight, torch.zeros(3, 3, 3))
    assert torch.equal(layer(torch.randn(2, 3, 4, 5)), torch.zeros(2, 3, 4, 5))
    layer.weight.data.fill_(1.)
    layer.reset_parameters()
    assert torch.equal(layer.weight, torch.zeros(3, 3, 3))


def test_gradient_of_both_halves_is_the_same():
    # Why the parameter is the full tensor: both weights of a pair move alike, as in the authors' training.
    layer = ChannelQuadratic2d(4, 3)
    x = torch.randn(2, 4, 3, 5)
    layer(x).mul(torch.randn(2, 3, 3, 5)).sum().backward()
    assert layer.weight.grad.shape == (3, 4, 4)
    torch.testing.assert_close(layer.weight.grad, layer.weight.grad.mT)
    assert layer.weight.grad.abs().min() > 0


def test_step_of_sgd_keeps_the_weight_symmetric():
    layer = ChannelQuadratic2d(4, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(layer(torch.randn(2, 4, 3, 5)), torch.randn(2, 3, 3, 5)).backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight, layer.weight.mT)
    assert layer.weight.abs().max() > 0.05


def test_repr():
    assert repr(ChannelQuadratic2d(3)) == 'ChannelQuadratic2d(3, 3)'
    layer = ChannelQuadratic2d(3, 5, stride=2, offset=(1, 0), backend='reference')
    assert repr(layer) == "ChannelQuadratic2d(3, 5, stride=(2, 2), offset=(1, 0), backend='reference')"


def test_device_and_dtype():
    layer = ChannelQuadratic2d(3, 5, device='meta', dtype=torch.bfloat16)
    assert layer.weight.device.type == 'meta' and layer.weight.dtype == torch.bfloat16
    output = layer(torch.zeros(2, 3, 4, 6, device='meta', dtype=torch.bfloat16))
    assert output.shape == (2, 5, 4, 6) and output.dtype == torch.bfloat16
    with torch.device('meta'):
        assert ChannelQuadratic2d(3).weight.device.type == 'meta'


def test_materialised_from_meta(poisoned_empty):
    layer = ChannelQuadratic2d(3, device='meta').to_empty(device='cpu')
    layer.reset_parameters()
    assert torch.equal(layer.weight, torch.zeros(3, 3, 3))


def test_backend_reaches_the_op():
    with pytest.raises(ValueError, match='nonsense'):
        ChannelQuadratic2d(3, backend='nonsense')(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize('kwargs, named', [
    (dict(in_chs=0), 'in_chs=0'),
    (dict(in_chs=3, out_chs=-1), 'out_chs=-1'),
    (dict(in_chs=3, stride=0), 'stride=0'),
    (dict(in_chs=3, stride=(1, 0)), r'stride=\(1, 0\)'),
    (dict(in_chs=3, offset=-1), 'offset=-1'),
])
def test_errors(kwargs, named):
    with pytest.raises(ValueError, match=named):
        ChannelQuadratic2d(**kwargs)


def test_wrong_number_of_channels():
    with pytest.raises(ValueError, match='C = 3'):
        ChannelQuadratic2d(3)(torch.zeros(2, 4, 5, 5))
