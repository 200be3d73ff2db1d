"""Gradients of every backend, against finite differences and against autograd through the written-out sum."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dit_timm import available_backends, quadratic_form
from dit_timm.ops import chunked
from dit_timm.ops.portable import quadratic_form_portable

pytestmark = pytest.mark.usefixtures('poisoned_empty')

BACKENDS = available_backends('cpu', torch.float64)


class Calls(TorchDispatchMode):
    """Records the names of our operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == 'dit_timm':
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def random(*shape, grad=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


def einsum_formula(x, weight):
    return torch.einsum('...i,oij,...j->...o', x, weight, x)


def assert_same_gradients(actual, expected, *inputs):
    grad = torch.randn_like(expected)
    for got, want in zip(torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad)):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('leading', [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize('in_chs, out_chs', [(1, 1), (1, 2), (3, 1), (3, 5)])
def test_gradcheck(backend, leading, in_chs, out_chs):
    x, weight = random(*leading, in_chs), random(out_chs, in_chs, in_chs)
    assert torch.autograd.gradcheck(lambda x, weight: quadratic_form(x, weight, backend=backend), (x, weight))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('view', [
    pytest.param(lambda x: x.t(), id='transposed'),
    pytest.param(lambda x: x[::2, 1::2], id='strided'),
    pytest.param(lambda x: x.view(1, 4, 2, 3).permute(0, 2, 3, 1), id='nchw'),
    pytest.param(
        lambda x: x.view(1, 4, 2, 3).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1),
        id='channels_last',
    ),
])
def test_gradcheck_of_views(backend, view):
    x = random(4, 6)
    channels = view(x).shape[-1]
    weight = random(2, channels, channels)
    assert torch.autograd.gradcheck(lambda x, w: quadratic_form(view(x), w, backend=backend), (x, weight))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('leading', [(), (5,), (2, 3, 4), (0,), (2, 0)])
@pytest.mark.parametrize('in_chs, out_chs', [(1, 1), (4, 1), (5, 3), (2, 6)])
def test_equals_autograd_of_formula(backend, leading, in_chs, out_chs, loop_formula):
    x, weight = random(*leading, in_chs), random(out_chs, in_chs, in_chs)
    assert_same_gradients(quadratic_form(x, weight, backend=backend), loop_formula(x, weight), x, weight)


@pytest.mark.parametrize('block', [1, 3, 8])
def test_portable_equals_autograd_of_formula(block):
    x, weight = random(6, 7), random(3, 7, 7)
    assert_same_gradients(quadratic_form_portable(x, weight, block), einsum_formula(x, weight), x, weight)


@pytest.mark.parametrize('threads', [1, 3], indirect=True)
@pytest.mark.parametrize('elements, rows', [(1, 1), (12, 2), (64, 4), (20, 100)])
@pytest.mark.parametrize('pixels', [1, 10, 11, 12])
@pytest.mark.parametrize('in_chs', [1, 5, 6])
def test_many_tiles_and_blocks(monkeypatch, elements, rows, pixels, in_chs, threads):
    monkeypatch.setattr(chunked, '_CPU_LANE_ELEMENTS', elements)
    monkeypatch.setattr(chunked, '_BLOCK_ROWS', rows)
    monkeypatch.setattr(chunked, '_MIN_LANE_PIXELS', 1)
    x, weight = random(pixels, in_chs), random(3, in_chs, in_chs)
    assert_same_gradients(quadratic_form(x, weight, backend='chunked'), einsum_formula(x, weight), x, weight)


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradient_of_any_strides(backend):
    # A sum hands down an expanded gradient, a transposed head a permuted one.
    x, weight = random(5, 4), random(3, 4, 4)
    for reduce in (torch.sum, lambda q: (q.t() * torch.arange(5.)).sum()):
        got = torch.autograd.grad(reduce(quadratic_form(x, weight, backend=backend)), (x, weight))
        want = torch.autograd.grad(reduce(einsum_formula(x, weight)), (x, weight))
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('backend', BACKENDS)
def test_weight_gradient_is_symmetric(backend):
    x, weight = random(9, 5, grad=False), random(3, 5, 5)
    quadratic_form(x, weight, backend=backend).square().sum().backward()
    torch.testing.assert_close(weight.grad, weight.grad.mT)
    assert weight.grad.abs().min() > 0


@pytest.mark.parametrize('backend', available_backends('cpu'))
@pytest.mark.parametrize('frozen', ['x', 'weight'])
def test_only_the_gradients_asked_for(backend, frozen):
    x = torch.randn(6, 4, requires_grad=frozen != 'x')
    weight = torch.randn(3, 4, 4, requires_grad=frozen != 'weight')
    with Calls() as recorded:
        quadratic_form(x, weight, backend=backend).square().sum().backward()
    expected_x, expected_weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    einsum_formula(expected_x, expected_weight).square().sum().backward()
    if frozen == 'x':
        assert x.grad is None
        torch.testing.assert_close(weight.grad, expected_weight.grad)
    else:
        assert weight.grad is None
        torch.testing.assert_close(x.grad, expected_x.grad)
    if backend != 'reference':
        name = f'dit_timm::quadratic_{backend}'
        wanted = f'{name}_grad_weight' if frozen == 'x' else f'{name}_grad_x'
        assert recorded.names == [name, wanted], 'a gradient nobody asked for costs time'
