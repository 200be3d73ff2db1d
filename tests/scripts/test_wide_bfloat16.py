"""bfloat16 on CPUs for which torch has no kernels of it."""

import argparse
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
import train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import engine
from training.steps import Steps

OPTIONS = argparse.Namespace(amp=True, amp_dtype='bfloat16', device='cpu')
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
        if namespace == 'aten' and any(word in name for word in ('conv', 'mm', 'linear', 'matmul')):
            self.dtypes |= {value.dtype for value in args if isinstance(value, torch.Tensor)}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('has_kernels, dtype', [(False, torch.float32), (True, torch.bfloat16)])
@pytest.mark.parametrize('inference', [False, True])
@pytest.mark.parametrize('call, shape', [
    (nn.Conv2d(3, 2, 1), (2, 3, 5, 5)), (nn.Conv2d(3, 2, 3, padding='same'), (2, 3, 5, 5)),
    (nn.Conv1d(3, 2, 1), (2, 3, 5)), (nn.Linear(3, 2), (4, 3)), (nn.Linear(3, 2, bias=False), (2, 4, 3)),
    (lambda x: x @ x.mT, (4, 3)), (lambda x: x @ x.mT, (2, 4, 3)),
])
def test_what_is_multiplied(call, shape, inference, has_kernels, dtype, monkeypatch):
    monkeypatch.setattr(engine, 'has_bfloat16_kernels', lambda: has_kernels)
    with torch.inference_mode(inference):
        x = torch.randn(shape, requires_grad=not inference)
        with Operands() as forward, engine.autocast(OPTIONS):
            output = call(x)
        assert output.dtype == torch.bfloat16 and forward.dtypes == {dtype}
    if not inference:
        with Operands() as backward, engine.widened(OPTIONS):
            output.sum().backward()
        assert backward.dtypes == {dtype}


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
    args = argparse.Namespace(**vars(train.parse_args(['--amp', '--device', 'cpu', '--no-channels-last'])))
    x, target = torch.randn(4, 3, 32, 32), torch.arange(4)
    both = []
    for checkpoints in (False, True):
        model.set_grad_checkpointing(checkpoints)
        copy = deepcopy(model)
        steps = Steps(copy, copy, torch.optim.SGD(copy.parameters(), lr=1.), NoSchedule(), args)
        with Operands() as operands:
            loss = steps.step(x, target, 0, 0, 1)
        assert operands.dtypes == {torch.float32}
        both.append((loss, *copy.parameters()))
    for plain, checkpointed in zip(*both):
        assert torch.equal(plain, checkpointed)


def test_only_where_it_is_needed(no_kernels, monkeypatch):
    for options in (dict(amp=False), dict(amp_dtype='float16'), dict(device='cuda')):
        assert not engine.lacks_bfloat16(argparse.Namespace(**{**vars(OPTIONS), **options}))
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
