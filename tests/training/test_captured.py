"""Captured steps, without a GPU: torch.fx records what a step does and does it again, as a CUDA graph would.

What a step takes from the host is then a constant of the record, and a run whose numbers change from step to step (the
learning rate, the decay of averaged weights, the images) goes wrong where one of them was read there.
"""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.fx.experimental.proxy_tensor import make_fx

from dit_timm.cli.train import parse_args
from dit_timm.training.captured import OPTIMIZERS, CapturedSteps, why_uncaptured
from dit_timm.training.optim import parameter_groups
from dit_timm.training.steps import Steps

BATCHES = 4


class RecordedSteps(CapturedSteps):
    """Captured steps whose graph is torch.fx's."""

    def capture(self, function):
        for _ in range(2):
            function()
        nothing = torch.zeros(())
        graph = make_fx(lambda _: function())(nothing)
        self._loss = torch.empty((), dtype=torch.float64)

        @torch.no_grad()
        def replay():
            self._loss.copy_(graph(nothing))

        return replay


def options(*words):
    return parse_args([
        '--device', 'cpu', '--batch-size', '4', '--smoothing', '0', '--epochs', '1', '--lr', '0.01', *words,
    ])


def build(kind, args, device='cpu', dtype=torch.float64):
    """Steps of a network, in float64 so that Adam does not make much of the rounding of small gradients."""
    torch.manual_seed(0)
    model = timm.create_model('dit_resnet20', num_classes=3).to(device, dtype)
    with torch.no_grad():
        model.layer2[0].quadratic.weight.normal_(std=0.01)
    groups = parameter_groups(model, args.weight_decay, args.quadratic_lr_scale)
    how = {} if kind is Steps else OPTIMIZERS[args.opt]
    optimizer = create_optimizer_v2(groups, opt=args.opt, lr=args.lr, weight_decay=0., momentum=0.9, **how)
    scheduler = CosineLRScheduler(optimizer, t_initial=BATCHES, t_in_epochs=False)
    model.train()
    return kind(model, model, optimizer, scheduler, args, 0)


def train(steps, first=0, last=BATCHES):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCHES, 4, 3, 32, 32, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 0])
    return [steps.step(images[batch], targets, 0, batch, BATCHES).item() for batch in range(first, last)]


def assert_same(steps, others):
    for (name, ours), theirs in zip(steps.unwrapped.state_dict().items(), others.unwrapped.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)
    if steps.ema is not None:
        averaged = zip(steps.ema.module.state_dict().values(), others.ema.module.state_dict().values())
        for ours, theirs in averaged:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('words', [
    [], ['--opt', 'momentum', '--clip-grad', '0.5'], ['--opt', 'adamw', '--lr', '0.001'],
    ['--model-ema', '--model-ema-decay', '0.9', '--model-ema-warmup'],
    ['--clip-grad', '0.1', '--clip-mode', 'agc', '--quadratic-lr-scale', '10'],
], ids=' '.join)
def test_recorded_steps_train_as_steps_do(words):
    args = options(*words)
    ours, theirs = build(RecordedSteps, args), build(Steps, args)
    losses = train(ours)
    torch.testing.assert_close(losses, train(theirs), rtol=1e-4, atol=1e-6)
    assert len(set(losses)) == BATCHES
    assert_same(ours, theirs)
    assert ours.updates == theirs.updates == BATCHES
    assert [group['lr'] for group in ours.optimizer.param_groups] == [
        group['lr'] for group in theirs.optimizer.param_groups
    ]


@pytest.mark.parametrize('opt', ['sgd', 'adamw'])
def test_a_run_goes_on_captured_where_it_was_not_and_the_other_way(opt):
    args = options('--opt', opt, '--lr', '0.01')
    whole = build(Steps, args)
    train(whole)
    for first, second in ((Steps, RecordedSteps), (RecordedSteps, Steps)):
        begun, ended = (build(kind, args) for kind in (first, second))
        train(begun, 0, 2)
        ended.unwrapped.load_state_dict(begun.unwrapped.state_dict())
        ended.load_state_dict(begun.state_dict())
        assert all(bool(group['fused']) == (second is RecordedSteps) for group in ended.optimizer.param_groups)
        train(ended, 2)
        assert_same(ended, whole)


def test_what_cannot_be_captured_has_a_reason():
    assert 'GPU' in why_uncaptured(options())
    on_gpu = options()
    on_gpu.device = 'cuda'
    assert why_uncaptured(on_gpu) is None
    assert 'processes' in why_uncaptured(on_gpu, 2)
    for words, fragment in (
            (['--opt', 'lamb'], '--opt lamb'), (['--grad-accum-steps', '2'], '--grad-accum-steps'),
            (['--grad-checkpointing'], '--grad-checkpointing'), (['--torchcompile'], '--torchcompile'),
            (['--amp', '--amp-dtype', 'float16'], 'float16'),
    ):
        args = options(*words)
        args.device = 'cuda'
        assert fragment in why_uncaptured(args)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('words', [
    [], ['--opt', 'adamw', '--lr', '0.001', '--model-ema', '--model-ema-decay', '0.9'],
    ['--opt', 'momentum', '--amp', '--channels-last', '--clip-grad', '1'],
], ids=' '.join)
def test_graphs_side_by_side_on_the_gpu_train_as_steps_do(words):
    args = options(*words)
    args.device = 'cuda'
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 4, 3, 32, 32, generator=generator).cuda()
    targets = torch.tensor([0, 1, 2, 0]).cuda()
    plain, *captured = (build(kind, args, 'cuda', torch.float32) for kind in (Steps, CapturedSteps, CapturedSteps))
    streams = [torch.cuda.Stream() for _ in captured]
    for batch in range(6):
        expected = plain.step(images[batch], targets, 0, batch, 6)
        for steps, stream in zip(captured, streams):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                loss = steps.step(images[batch], targets, 0, batch, 6)
            torch.cuda.synchronize()
            torch.testing.assert_close(loss, expected, rtol=0.05 if args.amp else 1e-3, atol=1e-3)
    for steps in captured:
        assert steps.updates == plain.updates == 6
