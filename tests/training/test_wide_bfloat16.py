"""bfloat16 on CPUs for which torch has no kernels of it."""

import platform
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dit_timm.cli import train
from dit_timm.config.parts import ModelConfig
from dit_timm.training import engine
from dit_timm.training.steps import Steps
from dit_timm.training.wide_bfloat16 import has_bfloat16_kernels

OPTIONS = ModelConfig(amp=True, amp_dtype='bfloat16', device='cpu')
LAYERS = {
    'convolution': (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), (4, 6, 9, 9)),
    'linear': (lambda: nn.Linear(12, 5), (3, 7, 12)),
}


class NoSchedule:
    def step_update(self, updates):
        pass


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setattr(engine, 'has_bfloat16_kernels', lambda: False)


def gradients(layer, x, grad):
    """Output, and gradients of x and of the weights, under the autocast of training."""
    x = x.detach().requires_grad_()
    with engine.autocast(OPTIONS):
        output = layer(x)
    with engine.widened(OPTIONS):
        return (output, *torch.autograd.grad(output, (x, *layer.parameters()), grad.to(output.dtype)))


@pytest.mark.parametrize('name', LAYERS)
def test_what_units_for_bfloat16_compute(name, no_kernels):
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
    for has_kernels in (False, True):
        monkeypatch.setattr(engine, 'has_bfloat16_kernels', lambda has_kernels=has_kernels: has_kernels)
        both.append(gradients(layer, x, grad))
    for ours, theirs in zip(*both):
        assert ours.dtype == theirs.dtype
        # Sums in another order may round to the next bfloat16.
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=2 ** -7, atol=theirs.abs().max().item() * 2 ** -8)


class Operands(TorchDispatchMode):
    """Notes the dtypes of what is multiplied."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, name = str(function).split('.')[:2]
        if namespace == 'aten' and any(word in name for word in ('conv', 'mm', 'mv', 'dot', 'linear', 'inner')):
            self.dtypes |= {value.dtype for value in args if isinstance(value, torch.Tensor)}
        return function(*args, **(kwargs or {}))


PRODUCTS = [
    (lambda: nn.Conv1d(3, 2, 1), (2, 3, 5)),
    (lambda: nn.Conv2d(3, 2, 1), (2, 3, 5, 5)),
    (lambda: nn.Conv2d(3, 3, 3, padding='same', groups=3), (2, 3, 5, 5)),
    (lambda: nn.Conv3d(3, 2, 1), (2, 3, 5, 5, 5)),
    (lambda: nn.ConvTranspose2d(3, 2, 2), (2, 3, 5, 5)),
    (lambda: nn.Linear(3, 2), (4, 3)),
    (lambda: nn.Linear(3, 2, bias=False), (2, 4, 3)),
    (lambda: lambda x: x @ x.mT, (4, 3)),
    (lambda: lambda x: x @ x.mT, (2, 4, 3)),
    (lambda: lambda x: x @ x[0], (4, 3)),
    (lambda: lambda x: torch.einsum('ij,kj->ik', x, x), (4, 3)),
]


@pytest.mark.parametrize('has_kernels, dtype', [(False, torch.float32), (True, torch.bfloat16)])
@pytest.mark.parametrize('trains', [False, True])
@pytest.mark.parametrize('create, shape', PRODUCTS)
def test_what_is_multiplied(create, shape, trains, has_kernels, dtype, monkeypatch):
    monkeypatch.setattr(engine, 'has_bfloat16_kernels', lambda: has_kernels)
    call, x = create(), torch.randn(shape, requires_grad=trains)
    with torch.set_grad_enabled(trains):
        with torch.autocast('cpu', torch.bfloat16):
            expected = call(x)
        with Operands() as forward, engine.autocast(OPTIONS):
            output = call(x)
    assert output.dtype == expected.dtype == torch.bfloat16 and output.stride() == expected.stride()
    assert forward.dtypes == {dtype}
    if trains:
        with Operands() as backward, engine.widened(OPTIONS):
            output.sum().backward()
        assert backward.dtypes == {dtype}


@pytest.mark.skipif(not Path('/proc/cpuinfo').exists() or platform.machine() != 'x86_64', reason='asks Linux on x86')
def test_which_cpus_have_kernels():
    flags = Path('/proc/cpuinfo').read_text()
    if 'avx_ne_convert' not in flags:
        assert has_bfloat16_kernels() == ('avx512bw' in flags)


def test_dtypes_that_do_not_fit_are_an_error_as_without(no_kernels):
    with engine.autocast(OPTIONS), torch.autocast('cpu', enabled=False), pytest.raises(RuntimeError, match='dtype'):
        F.linear(torch.randn(2, 3).bfloat16(), torch.randn(4, 3))


def test_what_autocast_leaves_alone(no_kernels):
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    with engine.autocast(OPTIONS):
        assert F.linear(x.double(), weight.double()).dtype == torch.float64
        with torch.autocast('cpu', enabled=False):
            assert torch.equal(F.linear(x, weight), x @ weight.t())
    assert torch.equal(F.linear(x, weight), x @ weight.t())
    with torch.autocast('cpu', torch.float16), engine.widened(OPTIONS):
        assert F.linear(x, weight).dtype == torch.float16


@pytest.mark.parametrize('model', ['test_dit_resnet', 'test_dit_convnext'])
def test_a_step_multiplies_in_float32_also_what_is_computed_again(model, no_kernels):
    model = timm.create_model(model).train()
    args = train.parse_args(['--amp', '--device', 'cpu', '--no-channels-last'])
    x, target = torch.randn(4, 3, 32, 32), torch.arange(4)
    both = []
    for checkpoints in (False, True):
        model.set_grad_checkpointing(checkpoints)
        copy = deepcopy(model)
        dtypes = []
        next(module for module in copy.modules() if isinstance(module, nn.Conv2d)).register_forward_hook(
            lambda module, inputs, output, dtypes=dtypes: dtypes.append(output.dtype)
        )
        steps = Steps(copy, copy, torch.optim.SGD(copy.parameters(), lr=1.), NoSchedule(), args)
        with Operands() as operands:
            loss = steps.step(x, target, 0, 0, 1)
        assert operands.dtypes == {torch.float32} and set(dtypes) == {torch.bfloat16}
        both.append((loss, *copy.parameters()))
    for plain, checkpointed in zip(*both):
        assert torch.equal(plain, checkpointed)


def test_only_where_it_is_needed(no_kernels, monkeypatch):
    for options in (dict(amp=False), dict(amp_dtype='float16'), dict(device='cuda')):
        assert not engine.lacks_bfloat16(replace(OPTIONS, **options))
    assert engine.lacks_bfloat16(OPTIONS)
    monkeypatch.setattr(engine, 'has_bfloat16_kernels', lambda: True)
    assert not engine.lacks_bfloat16(OPTIONS)


def test_a_run_says_so(no_kernels, capsys):
    arguments = ['--model', 'test_dit_resnet', '--img-size', '32', '--device', 'cpu', '--dry-run']
    train.main([*arguments, '--amp'])
    assert 'torch has no bfloat16 kernels for this CPU: values are rounded to it' in capsys.readouterr().out
    train.main([*arguments, '--amp', '--torchcompile'])
    assert 'with --torchcompile, --amp is slow' in capsys.readouterr().out
    train.main(arguments)
    assert 'bfloat16 kernels' not in capsys.readouterr().out
