"""Steps that are captured once as a CUDA graph and replayed, so that the GPU does not wait for the host.

A step of a network for small images is hundreds of kernels of a few microseconds, and the host needs longer to launch
one than the GPU to run it. Launched as one graph they follow each other at once, and several runs in streams of their
own fill the GPU together.

A graph has no arguments: it reads and writes the same memory each time. So the batch is copied to where the graph reads
it, and numbers that change from step to step (learning rates, the decay of averaged weights) are tensors on the device.
"""

from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3
from torch import nn

from ..config.training import TrainingConfig
from ..errors import InvalidInputError
from ..models.network import Network
from .optim import parameter_groups
from .steps import Steps

# By timm's names, the arguments with which torch's implementations take all from the device, the learning rate too.
_SGD, _ADAM = {'fused': True}, {'fused': True, 'capturable': True}
OPTIMIZERS: Dict[str, Dict[str, Any]] = {'sgd': _SGD, 'momentum': _SGD, 'adam': _ADAM, 'adamw': _ADAM}
# Before capture kernels are compiled and chosen, and the optimizer makes its state.
_WARMUP_STEPS = 3


def why_uncaptured(args: TrainingConfig, processes: int = 1) -> Optional[str]:
    """Say why the steps of a run cannot be captured; None where they can."""
    reasons = {
        'it needs a GPU.': torch.device(args.device).type != 'cuda',
        'gradients of several processes are exchanged between kernels.': processes > 1,
        f'--opt {args.opt} is not one of {", ".join(OPTIMIZERS)}.': args.opt not in OPTIMIZERS,
        'with --amp-dtype float16 the host looks at the gradients in each step.':
            args.amp and args.amp_dtype == 'float16',
        '--grad-accum-steps has steps of two kinds.': args.grad_accum_steps > 1,
        '--grad-checkpointing saves the state of the generator of random numbers.': args.grad_checkpointing,
        '--torchcompile can capture by itself.': args.torchcompile,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def capture_cuda_graph(function: Callable[[], Any]) -> Callable[[], None]:
    """Do some work a few times, and capture it.

    Args:
        function: Launches the work on the GPU.

    Returns:
        What does it once more, in the stream that is present then.
    """
    # What others have under way would disturb the choice among algorithms.
    torch.cuda.synchronize()
    graph, present = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    # A default stream cannot be captured. Any other is: libraries keep memory for each stream, which graphs that
    # run side by side must not share.
    stream = torch.cuda.Stream() if present == torch.cuda.default_stream() else present
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        for _ in range(_WARMUP_STEPS):
            function()
    # Other runs of this process may be at work in their streams: what they do is no error of this one.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode='thread_local'):
        function()
    present.wait_stream(stream)
    return graph.replay


class CapturedSteps(Steps):
    """`Steps` whose computation is captured at the first step.

    Attributes:
        capture: See `capture_cuda_graph`.
    """

    capture = staticmethod(capture_cuda_graph)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._replay: Optional[Callable[[], None]] = None

    def _compute(self, images: torch.Tensor, targets: torch.Tensor, members: int, updates: bool) -> torch.Tensor:
        if self._replay is None:
            self._images, self._targets = torch.empty_like(images), torch.empty_like(targets)
            self._rates = [torch.empty((), device=self.device) for _ in self.optimizer.param_groups]
            self._decay = torch.empty((), device=self.device)
            self._fill(images, targets)
            self._replay = self._capture()
        self._fill(images, targets)
        self._replay()
        return self._loss

    def _fill(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """Put what a step reads where it reads it."""
        self._images.copy_(images)
        self._targets.copy_(targets)
        for rate, group in zip(self._rates, self.optimizer.param_groups):
            rate.fill_(group['lr'])
        if self.ema is not None:
            self._decay.fill_(self.ema.get_decay(self.updates))

    def _capture(self) -> Callable[[], None]:
        """Capture a step, and leave the run where it was; returns what does the step."""
        groups = self.optimizer.param_groups
        # Schedules put numbers there; while a step is captured it must find the tensors.
        numbers = [group['lr'] for group in groups]
        for group, rate in zip(groups, self._rates):
            group['lr'] = rate
        before = {tensor.data_ptr(): tensor.clone() for tensor in self._state()}
        try:
            with torch.random.fork_rng([self.device] if self.device.type == 'cuda' else []):
                replay = self.capture(self._step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InvalidInputError(
                f'The step of {self.args.model} cannot be captured as a CUDA graph: {error} It can do without: '
                f'--no-cuda-graph.'
            ) from error
        for tensor in self._state():
            if tensor.data_ptr() in before:
                tensor.copy_(before[tensor.data_ptr()])
            else:
                # What the optimizer has made since begins at zero.
                tensor.zero_()
        for group, number in zip(groups, numbers):
            group['lr'] = number
        return replay

    def _step(self) -> torch.Tensor:
        self._loss = super()._compute(self._images, self._targets, 1, True)
        return self._loss

    @torch.no_grad()
    def _average(self, ema: ModelEmaV3) -> None:
        ours, theirs = ema.module.state_dict().values(), self.unwrapped.state_dict().values()
        floats = [(mine, yours) for mine, yours in zip(ours, theirs) if mine.is_floating_point()]
        mine, yours = (list(tensors) for tensors in zip(*floats))
        # As timm's, with the decay on the device: mine + (yours - mine) (1 - decay).
        steps = torch._foreach_sub(yours, mine)
        torch._foreach_mul_(steps, 1 - self._decay)
        torch._foreach_add_(mine, steps)
        for counter, new in zip(ours, theirs):
            if not counter.is_floating_point():
                counter.copy_(new)

    def _state(self) -> List[torch.Tensor]:
        """Every tensor that a step changes."""
        averaged = self.ema.module.state_dict().values() if self.ema is not None else ()
        optimizer = [
            value for state in self.optimizer.state.values() for value in state.values()
            if isinstance(value, torch.Tensor)
        ]
        return [*self.unwrapped.state_dict().values(), *averaged, *optimizer]


def create_steps(
        args: TrainingConfig, wrapped: nn.Module, model: Network, batches: int, rank: int,
        uncaptured: Optional[str],
) -> Tuple[Steps, int]:
    """Create the optimizer, its schedule, and the steps, captured where they can be.

    Args:
        args: Options.
        wrapped: The network as it is called.
        model: The same as it is saved.
        batches: Batches of an epoch.
        rank: Number of this process.
        uncaptured: See `why_uncaptured`.

    Returns:
        The steps, and the number of epochs that the schedule has.

    Raises:
        InvalidInputError: `--cuda-graph` asks for what cannot be, or the optimizer refuses its options.
    """
    if args.cuda_graph and uncaptured is not None:
        raise InvalidInputError(f'--cuda-graph: {uncaptured}')
    captured = args.cuda_graph is not False and uncaptured is None
    # Shapes are fixed, so cuDNN may look for its fastest kernels; runs on a GPU are not bitwise reproducible anyway.
    torch.backends.cudnn.benchmark = True
    groups = parameter_groups(
        model, args.weight_decay, args.quadratic_lr_scale, args.layer_decay, args.decay_norms,
    )
    optional: Dict[str, Any] = {'eps': args.opt_eps, 'betas': args.opt_betas}
    # The groups say what decays.
    try:
        optimizer = create_optimizer_v2(
            groups, opt=args.opt, lr=args.lr, weight_decay=0., momentum=args.momentum,
            **{key: value for key, value in optional.items() if value is not None},
            **(OPTIMIZERS[args.opt] if captured else {}),
        )
    except ValueError as error:
        # The word of all optimizers for numbers out of their range.
        raise InvalidInputError(f'--opt {args.opt} refuses its options: {error}') from error
    updates = -(-batches // args.grad_accum_steps)
    schedule: Dict[str, Any] = {**scheduler_kwargs(args)}
    scheduler, epochs = create_scheduler_v2(optimizer, **schedule, updates_per_epoch=updates)
    return (CapturedSteps if captured else Steps)(wrapped, model, optimizer, scheduler, args, rank), epochs
