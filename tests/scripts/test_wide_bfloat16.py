"""bfloat16 on CPUs that have no units for it."""

import argparse

import pytest
import torch
import torch.nn.functional as F
import train
from torch import nn
from training import engine

OPTIONS = argparse.Namespace(amp=True, amp_dtype='bfloat16', device='cpu')
LAYERS = {
    'convolution': (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), (4, 6, 9, 9)),
    'linear': (lambda: nn.Linear(12, 5), (3, 7, 12)),
}


@pytest.fixture
def no_units(monkeypatch):
    monkeypatch.setattr(engine, 'has_bfloat16_units', lambda: False)


def gradients(layer, x, grad):
    """Output, and gradients of x and of the weights, under the autocast of training."""
    x = x.detach().requires_grad_()
    with engine.autocast(OPTIONS):
        output = layer(x)
    return (output, *torch.autograd.grad(output, (x, *layer.parameters()), grad.to(output.dtype)))


@pytest.mark.parametrize('name', LAYERS)
def test_what_units_for_bfloat16_compute(name, no_units):
    create, shape = LAYERS[name]
    layer, x = create(), torch.randn(shape)
    grad = torch.randn_like(layer(x)).bfloat16()
    output, *got = gradients(layer, x, grad)
    # In float64, on operands that were rounded to bfloat16.
    exact = create().double()
    exact.load_state_dict({key: value.bfloat16().double() for key, value in layer.state_dict().items()})
    x = x.bfloat16().double().requires_grad_()
    want = exact(x)
    assert output.dtype == torch.bfloat16
    # The sums are float32: of 20 products they lie closer to the exact ones than half a step of bfloat16, 2 ** -9, so
    # that a rounding differs only where an exact sum lies halfway.
    assert (output.double() - want).abs().max() <= want.abs().max() * 2 ** -8
    assert (output == want.bfloat16()).double().mean() > 0.99
    for ours, theirs in zip(got, torch.autograd.grad(want, (x, *exact.parameters()), grad.double())):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, ours.bfloat16().float()), 'gradients are not rounded to bfloat16'
        assert (ours.double() - theirs).abs().max() <= theirs.abs().max() * 2 ** -8


@pytest.mark.parametrize('name', LAYERS)
def test_torch_computes_the_same(name, monkeypatch):
    create, shape = LAYERS[name]
    layer, x = create(), torch.randn(shape)
    grad = torch.randn_like(layer(x))
    both = []
    for has_units in (False, True):
        monkeypatch.setattr(engine, 'has_bfloat16_units', lambda has_units=has_units: has_units)
        both.append(gradients(layer, x, grad))
    for ours, theirs in zip(*both):
        assert ours.dtype == theirs.dtype
        # Sums in another order may round to the next bfloat16.
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=2 ** -7, atol=theirs.abs().max().item() * 2 ** -8)


def test_only_where_it_is_needed(no_units, monkeypatch):
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    for options in (dict(amp=False), dict(amp_dtype='float16'), dict(device='cuda')):
        assert not engine.widens_bfloat16(argparse.Namespace(**{**vars(OPTIONS), **options}))
    assert engine.widens_bfloat16(OPTIONS)
    with engine.autocast(OPTIONS):
        assert F.linear(x, weight).dtype == torch.bfloat16
    # Nothing is left behind.
    assert torch.equal(F.linear(x, weight), x @ weight.t())
    monkeypatch.setattr(engine, 'has_bfloat16_units', lambda: True)
    assert not engine.widens_bfloat16(OPTIONS)


def test_a_run_says_so(no_units, capsys):
    arguments = ['--model', 'test_dit_resnet', '--img-size', '32', '--dry-run']
    train.main([*arguments, '--amp'])
    assert 'This CPU has no units for bfloat16' in capsys.readouterr().out
    train.main(arguments)
    assert 'units for bfloat16' not in capsys.readouterr().out
