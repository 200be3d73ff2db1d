"""Part 'model': Dit networks against their base networks, and against themselves with the materialised form."""

import argparse
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Callable, ClassVar, Dict, List, Optional, Sequence, Tuple, cast

import timm
import torch
import torch.nn.functional as F
from timm.models import get_pretrained_cfg_value
from torch import nn

from .. import ChannelQuadratic2d
from ..models.network import Network
from .checks import dtype_of, expect_close, full_float32
from .compare import compare
from .forms import BASE, MATERIALISED, OURS, materialised_backend
from .implementation import Work
from .op import check_backends
from .results import Row, to_rows
from .shape import Shape

TITLE = 'networks'

INFERENCE, TRAIN_STEP = 'inference', 'train step'

_MODELS = ('dit_convnext_tiny', 'dit_resnet50', 'dit_resnet20')
_CPU_BATCH_SIZE = 16
_BATCH_SIZE = 128
_SMALL_IMAGE = 64

# Of float32 networks, as in `checks.TOLERANCES`.
_TOLERANCE = 1e-4
_CHECKED_IMAGES = 2


@dataclass(frozen=True)
class ModelImplementation:
    """A network with random images, as 'ours', 'materialised' or 'base network'; see `Implementation`."""
    implementation: str
    model: str
    batch_size: int
    img_size: int
    device: str
    amp: Optional[str] = None
    channels_last: bool = False
    torchcompile: bool = False
    phases: ClassVar[Tuple[str, ...]] = (INFERENCE, TRAIN_STEP)

    @property
    def memory_format(self) -> torch.memory_format:
        """That of the network and the images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def network(self) -> Network:
        """Create the network. 'ours' and 'materialised' have the same weights, those of the quadratic term not zero."""
        name, kwargs = base_network(self.model) if self.implementation == BASE else (self.model, {})
        if get_pretrained_cfg_value(name, 'fixed_input_size'):
            kwargs['img_size'] = self.img_size
        torch.manual_seed(0)
        network = cast(Network, timm.create_model(name, **kwargs))
        for key, parameter in network.named_parameters():
            # timm starts layer scales and the last norms of blocks at about zero, and then nothing of the quadratic
            # term reaches the output.
            if parameter.ndim == 1 and key.endswith(('weight', 'gamma')):
                nn.init.ones_(parameter)
        for module in network.modules():
            if isinstance(module, ChannelQuadratic2d):
                nn.init.normal_(module.weight, std=1 / module.in_chs)
                if self.implementation == MATERIALISED:
                    module.backend = MATERIALISED
        return network.to(self.device).to(memory_format=self.memory_format)

    def images(self) -> torch.Tensor:
        """The batch."""
        torch.manual_seed(1)
        images = torch.randn(self.batch_size, 3, self.img_size, self.img_size)
        return images.to(self.device, memory_format=self.memory_format)

    def forward(self, network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Logits, in the precision and with the form of this implementation."""
        precision = nullcontext()
        if self.amp is not None:
            precision = torch.autocast(torch.device(self.device).type, dtype=getattr(torch, self.amp))
        with precision, materialised_backend() if self.implementation == MATERIALISED else nullcontext():
            return network(images)

    def build(self, phase: str) -> Work:
        """See `Implementation`."""
        network, images = self.network().train(phase == TRAIN_STEP), self.images()
        targets = torch.arange(self.batch_size, device=self.device) % network.num_classes
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        # Disabled, it passes the loss through.
        scaler = torch.amp.GradScaler(torch.device(self.device).type, enabled=self.amp == 'float16')
        compute = torch.compile(network) if self.torchcompile else network

        @torch.no_grad()
        def infer(count: int = self.batch_size) -> torch.Tensor:
            return self.forward(compute, images[:count])

        def step(count: int = self.batch_size) -> None:
            loss = F.cross_entropy(self.forward(compute, images[:count]), targets[:count])
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            # At the end of the step, so that no gradients lie around while the others have their turns.
            optimizer.zero_grad()

        function = infer if phase == INFERENCE else step
        # A graph is compiled for its size, and compiling takes memory.
        return Work(function, function if self.torchcompile else lambda: function(min(2, self.batch_size)))


def base_network(model: str) -> Tuple[str, Dict[str, Any]]:
    """The network that a Dit network adds its term to, as the arguments of `timm.create_model`."""
    base = model.replace('dit_', '', 1)
    return (base, {}) if timm.is_model(base) else (model, {'quadratic': False})


def subjects(args: argparse.Namespace) -> Sequence[str]:
    """The networks to measure."""
    return _MODELS if args.only is None else args.only_models


def _runs(model: str, args: argparse.Namespace) -> Dict[str, ModelImplementation]:
    # timm's annotation has None, for networks that it does not know.
    img_size = args.img_size or cast(Tuple[int, int, int], get_pretrained_cfg_value(model, 'input_size'))[-1]
    on_cpu = torch.device(args.device).type == 'cpu'
    batch_size = args.batch_size or (_CPU_BATCH_SIZE if on_cpu and img_size > _SMALL_IMAGE else _BATCH_SIZE)
    return {
        implementation: ModelImplementation(
            implementation, model, batch_size, img_size, args.device, args.amp, args.channels_last, args.torchcompile,
        )
        for implementation in (OURS, BASE, MATERIALISED)
    }


def check(model: str, args: argparse.Namespace) -> None:
    """Hold the network to the one with the materialised form, and its quadratic terms to the formula.

    The networks are compared in float32 on a small batch: what follows a term amplifies its rounding. The terms are
    checked with their gradients, in the precision and at the shapes that are timed; see `check_backends`.

    Raises:
        CheckFailedError: Something differs by more than its tolerance.
    """
    runs = _runs(model, args)
    ours, reference = (
        replace(runs[name], batch_size=_CHECKED_IMAGES, amp=None) for name in (OURS, MATERIALISED)
    )
    with full_float32():
        logits, terms = _outputs(ours)
        true_logits, true_terms = _outputs(reference)
    expect_close(f'{model}: logits', logits, true_logits, _TOLERANCE)
    for (shape, output), (_, true_output) in zip(terms, true_terms):
        expect_close(f'{model}: quadratic term at {shape}', output, true_output, _TOLERANCE)
        timed = shape._replace(pixels=shape.pixels // _CHECKED_IMAGES * runs[OURS].batch_size)
        check_backends(timed, (OURS,), args.device, args.model_precision)


@torch.no_grad()
def _outputs(run: ModelImplementation) -> Tuple[torch.Tensor, List[Tuple[Shape, torch.Tensor]]]:
    """The logits, and shape and output of every quadratic term."""
    network = run.network().eval()
    terms: List[Tuple[Shape, torch.Tensor]] = []

    def keep(term: ChannelQuadratic2d, inputs: Any, output: torch.Tensor) -> None:
        terms.append((Shape(output.numel() // term.out_chs, term.in_chs, term.out_chs), output))

    for module in network.modules():
        if isinstance(module, ChannelQuadratic2d):
            module.register_forward_hook(keep)
    return run.forward(network, run.images()), terms


def measure(model: str, args: argparse.Namespace) -> List[Row]:
    """Time the network and those that it is compared with; returns a row for each implementation and phase."""
    runs = _runs(model, args)
    results = compare(runs, ModelImplementation.phases, args.rounds, tuple(runs) if args.memory else ())
    settings = [name for name in ('channels_last', 'torchcompile') if getattr(args, name)]
    facts = {
        'part': 'model',
        'subject': model,
        'dtype': f'amp {args.amp}' if args.amp else args.model_precision,
        'settings': ' '.join(settings),
        'batch_size': runs[OURS].batch_size,
        'img_size': runs[OURS].img_size,
    }
    dtype = dtype_of(args.model_precision)
    return [
        row for phase in results for row in to_rows(results[phase], args.device, dtype, {**facts, 'phase': phase})
    ]
