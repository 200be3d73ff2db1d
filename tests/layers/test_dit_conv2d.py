"""DitConv2d against a convolution plus the formula at the pixel under the centre of the kernel."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from dit_timm import DitConv2d
from dit_timm.layers import add_dendrite

# Arguments of nn.Conv2d behind in_channels and out_channels. The names say what each is there for.
GEOMETRIES = {
    'depthwise 7x7': dict(kernel_size=7, padding=3, groups=4),
    'pointwise': dict(kernel_size=1),
    'pointwise strided': dict(kernel_size=1, stride=2),
    '3x3': dict(kernel_size=3, padding=1),
    '3x3 strided': dict(kernel_size=3, padding=1, stride=2),
    '3x3 unpadded': dict(kernel_size=3),
    '3x3 unpadded strided': dict(kernel_size=3, stride=2),
    '5x5 half padded': dict(kernel_size=5, padding=1, stride=2),
    'dilated': dict(kernel_size=3, padding=2, dilation=2),
    'dilated unpadded strided': dict(kernel_size=3, dilation=2, stride=3),
    'oblong': dict(kernel_size=(3, 5), padding=(1, 0), stride=(2, 1)),
    'oblong dilated': dict(kernel_size=(1, 3), padding=(0, 1), dilation=(1, 3), stride=(1, 2)),
    'same': dict(kernel_size=3, padding='same'),
    'same dilated': dict(kernel_size=(5, 3), padding='same', dilation=2),
    'valid': dict(kernel_size=3, padding='valid', stride=2),
    'patchify': dict(kernel_size=4, stride=4),
    'even kernel': dict(kernel_size=2, stride=2),
    'even kernel padded': dict(kernel_size=4, padding=1, stride=2),
    'reflect padding': dict(kernel_size=3, padding=1, padding_mode='reflect'),
}
each_geometry = pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
each_size = pytest.mark.parametrize('size', [(9, 12), (12, 9), (13, 13)])


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def expected_output(x, conv, weight):
    """conv(x) plus, at every output, x' A x at the input under the middle tap (of an even kernel: the earlier one)."""
    kernel, stride, dilation = pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation)
    if conv.padding == 'same':
        padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation)]
    else:
        padding = (0, 0) if conv.padding == 'valid' else pair(conv.padding)
    output = F.conv2d(
        x if conv.padding_mode == 'zeros' else F.pad(x, [padding[1]] * 2 + [padding[0]] * 2, mode=conv.padding_mode),
        conv.weight, conv.bias, stride, padding if conv.padding_mode == 'zeros' else 0, dilation, conv.groups,
    ).detach().clone()
    for a in range(output.shape[2]):
        for b in range(output.shape[3]):
            h = a * stride[0] - padding[0] + (kernel[0] - 1) // 2 * dilation[0]
            w = b * stride[1] - padding[1] + (kernel[1] - 1) // 2 * dilation[1]
            pixel = x[:, :, h, w]
            output[:, :, a, b] += torch.einsum('ni,oij,nj->no', pixel, weight, pixel)
    return output


def dit_conv(geometry, **kwargs):
    conv = DitConv2d(4, 8, **geometry, **kwargs).double()
    nn.init.normal_(conv.quadratic.weight)
    return conv


@each_geometry
@each_size
def test_equals_convolution_plus_quadratic(geometry, size):
    conv = dit_conv(geometry)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(conv(x).detach(), expected_output(x, conv, conv.quadratic.weight.detach()))


@each_geometry
def test_is_the_convolution_at_zero(geometry):
    conv = nn.Conv2d(4, 8, **geometry)
    dendritic = DitConv2d(4, 8, **geometry)
    missing, unexpected = dendritic.load_state_dict(conv.state_dict(), strict=False)
    assert missing == ['quadratic.weight'] and not unexpected
    for size in ((9, 12), (13, 13)):
        x = torch.randn(2, 4, *size)
        assert torch.equal(dendritic(x), conv(x))


@each_geometry
def test_quadratic_of_squares_is_a_convolution_of_squares(geometry):
    # Independent of any arithmetic on positions: a diagonal weight is the middle tap of a convolution of x^2.
    if any(k % 2 == 0 for k in pair(geometry['kernel_size'])):
        geometry = dict(geometry, kernel_size=3, padding=1)
    geometry = {key: value for key, value in geometry.items() if key != 'groups'}
    conv = DitConv2d(4, 8, bias=False, **geometry).double()
    nn.init.zeros_(conv.weight)
    diagonal = torch.randn(8, 4, dtype=torch.float64)
    conv.quadratic.weight.data = torch.diag_embed(diagonal)
    plain = nn.Conv2d(4, 8, bias=False, **geometry).double()
    nn.init.zeros_(plain.weight)
    middle = [k // 2 for k in pair(geometry['kernel_size'])]
    plain.weight.data[:, :, middle[0], middle[1]] = diagonal
    for size in ((9, 12), (12, 9)):
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        torch.testing.assert_close(conv(x), plain(x.square()))


@pytest.mark.parametrize('kernel, stride, dilation', [(3, 1, 1), (3, 1, 2), (5, 1, 1), (3, 2, 1), (5, 2, 1), (3, 3, 1)])
@pytest.mark.parametrize('size', [9, 12])
def test_conv2d_same_of_timm(kernel, stride, dilation, size):
    # Its left padding depends on the size of the input, and so does the pixel under the middle tap.
    conv = Conv2dSame(4, 8, kernel, stride=stride, dilation=dilation, bias=False).double()
    plain = copy.deepcopy(conv)
    add_dendrite(conv)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(plain.weight)
    diagonal = torch.randn(8, 4, dtype=torch.float64)
    conv.quadratic.weight.data = torch.diag_embed(diagonal)
    plain.weight.data[:, :, kernel // 2, kernel // 2] = diagonal
    x = torch.randn(2, 4, size, size, dtype=torch.float64)
    torch.testing.assert_close(conv(x), plain(x.square()))


def test_norms():
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    conv = dit_conv(GEOMETRIES['3x3 strided'], quadratic_norm='instance')
    plain = nn.utils.skip_init(nn.Conv2d, 4, 8, 3, padding=1, stride=2, dtype=torch.float64)
    plain.load_state_dict(conv.state_dict(), strict=False)
    # The statistics are of the whole map, also where the stride leaves positions out.
    normed = F.instance_norm(x)[..., ::2, ::2]
    quadratic = torch.einsum('nihw,oij,njhw->nohw', normed, conv.quadratic.weight, normed)
    torch.testing.assert_close(conv(x), plain(x) + quadratic)

    conv = DitConv2d(4, 8, 1, quadratic_norm=nn.BatchNorm2d)
    assert isinstance(conv.quadratic_norm, nn.BatchNorm2d) and conv.quadratic_norm.num_features == 4
    with pytest.raises(ValueError, match=r"quadratic_norm.*'instance'.*got 'layer'"):
        DitConv2d(4, 8, 1, quadratic_norm='layer')


@pytest.mark.parametrize('geometry', [
    dict(kernel_size=3, padding=2), dict(kernel_size=1, padding=1), dict(kernel_size=(3, 5), padding=(0, 3)),
])
def test_too_much_padding_is_refused(geometry):
    with pytest.raises(ValueError, match='padding must not exceed half the kernel'):
        DitConv2d(4, 8, **geometry)


def test_device_dtype_and_names():
    conv = DitConv2d(4, 8, 3, device='meta', dtype=torch.bfloat16, backend='reference')
    assert {(p.device.type, p.dtype) for p in conv.parameters()} == {('meta', torch.bfloat16)}
    assert list(conv.state_dict()) == ['weight', 'bias', 'quadratic.weight']
    assert conv.quadratic.weight.shape == (8, 4, 4)
    assert conv.quadratic.backend == 'reference'
    assert isinstance(conv, nn.Conv2d)


def test_gradients():
    conv = dit_conv(GEOMETRIES['3x3 strided'])
    x = torch.randn(1, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, a: torch.func.functional_call(conv, {'quadratic.weight': a}, (x,)), (x, conv.quadratic.weight),
    )


@pytest.mark.filterwarnings('ignore')
@each_geometry
@pytest.mark.parametrize('norm', [None, 'instance'])
def test_torchscript(geometry, norm):
    conv = dit_conv(geometry, quadratic_norm=norm).float().eval()
    x = torch.randn(2, 4, 12, 9)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(conv), buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(x), conv(x), rtol=1e-4, atol=1e-4)


@each_geometry
@pytest.mark.parametrize('norm', [None, 'instance'])
def test_fx(geometry, norm):
    conv = dit_conv(geometry, quadratic_norm=norm)
    traced = torch.fx.symbolic_trace(conv)
    for size in ((9, 12), (13, 13)):
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        assert torch.equal(traced(x), conv(x))


@pytest.mark.parametrize('make', [
    lambda: dit_conv(GEOMETRIES['3x3 strided'], quadratic_norm='instance'),
    lambda: add_dendrite(Conv2dSame(4, 8, 3, stride=2)).double(),
], ids=['DitConv2d', 'Conv2dSame'])
@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['copy', 'pickle'])
def test_copies_are_equal_and_independent(make, duplicate):
    conv = make()
    nn.init.normal_(conv.quadratic.weight)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    before = conv(x)
    twin = duplicate(conv)
    assert type(twin) is type(conv)
    assert torch.equal(twin(x), before)
    twin.quadratic.weight.data.add_(1.)
    assert torch.equal(conv(x), before) and not torch.equal(twin(x), before)


def test_compile():
    conv = dit_conv(GEOMETRIES['5x5 half padded'], quadratic_norm='instance')
    torch._dynamo.reset()
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    x = torch.randn(2, 4, 9, 12, dtype=torch.float64, requires_grad=True)
    got = torch.autograd.grad(compiled(x).square().sum(), (x, *conv.parameters()))
    want = torch.autograd.grad(conv(x).square().sum(), (x, *conv.parameters()))
    torch.testing.assert_close(got, want)
