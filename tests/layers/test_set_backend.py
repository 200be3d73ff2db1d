"""Choosing the backend of a whole network."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dit_timm import DitConv2d, QuadraticLinear, set_backend


class Operators(TorchDispatchMode):
    """Collects the operators of ours that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == 'dit_timm':
            self.names.append(func.__name__.partition('.')[0])
        return func(*args, **(kwargs or {}))


def called(model, x):
    with Operators() as operators, torch.no_grad():
        model(x)
    return operators.names


def test_every_term_of_the_network_follows():
    model = nn.Sequential(DitConv2d(3, 4, 3), nn.Sequential(nn.ReLU(), DitConv2d(4, 2, 1, backend='native')))
    x = torch.randn(1, 3, 5, 5)
    assert set_backend(model, 'chunked') is model
    assert called(model, x) == ['quadratic_chunked'] * 2
    # A copy keeps the choice.
    assert called(copy.deepcopy(model), x) == ['quadratic_chunked'] * 2
    set_backend(model, None)
    assert called(model, x) == ['quadratic_native'] * 2


def test_quadratic_neurons_follow_too():
    model = nn.Sequential(QuadraticLinear(4, 3), nn.ReLU(), QuadraticLinear(3, 2, rank=2))
    assert called(set_backend(model, 'chunked'), torch.randn(5, 4)) == ['quadratic_chunked']
    assert model[2].backend is None


def test_of_a_registered_network():
    model = set_backend(timm.create_model('test_dit_resnet').eval(), 'chunked')
    assert set(called(model, torch.randn(1, 3, 32, 32))) == {'quadratic_chunked'}


def test_errors():
    with pytest.raises(ValueError, match="'chunkd'.*Did you mean 'chunked'"):
        set_backend(nn.Sequential(DitConv2d(3, 4, 3)), 'chunkd')
    with pytest.raises(ValueError, match='Sequential has no quadratic term'):
        set_backend(nn.Sequential(nn.Conv2d(3, 4, 3)), 'chunked')
