"""QuadraticLinear against the neuron written out."""

import pytest
import torch

from dit_timm import QuadraticLinear, available_backends

RANKS = [None, 1, 3]


def randomised(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer.double()


def weights_of(layer):
    """A of each output, from the parameters."""
    if layer.rank is None:
        return layer.quadratic.detach()
    weights = torch.zeros(len(layer.factors), *2 * layer.factors.shape[-1:], dtype=layer.factors.dtype)
    for o, (factors, coefficients) in enumerate(zip(layer.factors.detach(), layer.coefficients.detach())):
        for v, c in zip(factors, coefficients):
            weights[o] += c * torch.outer(v, v)
    return weights


@pytest.mark.parametrize('rank', RANKS)
@pytest.mark.parametrize('bias', [True, False])
def test_equals_formula(rank, bias):
    layer = randomised(QuadraticLinear(5, 3, bias=bias, rank=rank))
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    weights, output = weights_of(layer), layer(x).detach()
    assert output.shape == (2, 4, 3)
    for place in [(0, 0), (1, 3)]:
        v = x[place]
        for o in range(3):
            expected = layer.linear.weight[o] @ v + v @ weights[o] @ v + (layer.linear.bias[o] if bias else 0)
            torch.testing.assert_close(output[(*place, o)], expected.detach())
    form = layer.form().detach()
    torch.testing.assert_close(form, form.mT)
    torch.testing.assert_close(form, (weights + weights.mT) / 2)
    torch.testing.assert_close(layer(x[0, 0]), layer(x)[0, 0])


@pytest.mark.parametrize('backend', available_backends())
def test_every_backend(backend):
    layer = randomised(QuadraticLinear(6, 4, backend=backend))
    x = torch.randn(7, 6)
    expected = layer.linear(x.double()) + torch.einsum('pi,oij,pj->po', x.double(), layer.quadratic, x.double())
    torch.testing.assert_close(layer.float()(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('rank', RANKS)
def test_starts_as_its_linear_part_and_learns(rank, poisoned_empty):
    layer = QuadraticLinear(5, 3, rank=rank)
    x = torch.randn(8, 5)
    torch.testing.assert_close(layer(x), layer.linear(x), rtol=0, atol=0)
    layer(x).square().sum().backward()
    learns = layer.quadratic if rank is None else layer.coefficients
    assert learns.grad.abs().min() > 0
    randomised(layer).reset_parameters()
    torch.testing.assert_close(layer(x.double()), layer.linear(x.double()), rtol=0, atol=0)


def test_device_and_dtype():
    for rank in RANKS:
        layer = QuadraticLinear(3, 5, rank=rank, device='meta', dtype=torch.bfloat16)
        assert {parameter.device.type for parameter in layer.parameters()} == {'meta'}
        output = layer(torch.zeros(2, 3, device='meta', dtype=torch.bfloat16))
        assert output.shape == (2, 5) and output.dtype == torch.bfloat16


def test_repr():
    assert '(linear): Linear(in_features=3, out_features=5' in repr(QuadraticLinear(3, 5))
    assert repr(QuadraticLinear(3, 5, rank=2)).startswith('QuadraticLinear(\n  rank=2')


@pytest.mark.parametrize('kwargs, named', [
    (dict(in_features=0, out_features=1), 'in_features=0'),
    (dict(in_features=3, out_features=-1), 'out_features=-1'),
    (dict(in_features=3, out_features=1, rank=0), 'rank=0'),
    (dict(in_features=3, out_features=1, backend='nonsense'), 'nonsense'),
    (dict(in_features=3, out_features=1, rank=2, backend='chunked'), "leave out rank=2 or backend='chunked'"),
])
def test_errors(kwargs, named):
    with pytest.raises(ValueError, match=named):
        QuadraticLinear(**kwargs)
