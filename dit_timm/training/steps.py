"""The steps of training: from batches to updates of the weights."""

from contextlib import nullcontext
from typing import Any, Dict, Optional

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch import nn

from ..config.training import TrainingConfig
from ..data.randomness import seed_step
from ..models.network import Network
from .engine import autocast, prepared


def create_loss(args: TrainingConfig, mixes: bool) -> nn.Module:
    """The loss that the options ask for; `mixes`: targets are distributions, as Mixup makes them."""
    if args.bce_loss:
        return BinaryCrossEntropy(
            smoothing=0. if mixes else args.smoothing,
            target_threshold=args.bce_target_thresh,
            sum_classes=args.bce_sum,
        )
    if mixes:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def create_mixup(args: TrainingConfig, num_classes: int) -> Optional[Mixup]:
    """timm's Mixup and CutMix; None if the options ask for neither."""
    if not (args.mixup > 0 or args.cutmix > 0):
        return None
    return Mixup(
        mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, prob=args.mixup_prob, switch_prob=args.mixup_switch_prob,
        label_smoothing=args.smoothing, num_classes=num_classes,
    )


class Steps:
    """Trains a network on one batch after another.

    Args:
        model: The network, wrapped and compiled as it will be called.
        unwrapped: The same network as it is saved.
        optimizer: The optimizer.
        scheduler: timm's scheduler, for its steps by update.
        args: Options.
        rank: Number of this process.
    """

    def __init__(
            self, model: nn.Module, unwrapped: Network, optimizer: torch.optim.Optimizer, scheduler: Any,
            args: TrainingConfig, rank: int = 0,
    ) -> None:
        self.model, self.unwrapped, self.optimizer, self.scheduler = model, unwrapped, optimizer, scheduler
        self.args, self.rank = args, rank
        self.device = torch.device(args.device)
        self.updates = 0
        # Such as AdaHessian, which differentiates the gradients.
        self.second_order = getattr(optimizer, 'is_second_order', False)
        self.mixup = create_mixup(args, unwrapped.num_classes)
        self.loss_fn = create_loss(args, self.mixup is not None)
        self.erasing = RandomErasing(
            args.reprob, mode=args.remode, max_count=args.recount, device=args.device,
        ) if args.reprob > 0 else None
        # Float16 gradients underflow unless the loss is scaled up; bfloat16 has the range of float32.
        self.scaler = NativeScaler(device=self.device.type) if args.amp and args.amp_dtype == 'float16' else None
        self.ema = ModelEmaV3(
            unwrapped, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup,
        ) if args.model_ema else None

    def step(self, images: torch.Tensor, targets: torch.Tensor, epoch: int, batch: int, batches: int) -> torch.Tensor:
        """Train on a batch.

        Args:
            images: Images of this process, on the device.
            targets: Their classes.
            epoch: Number of the epoch.
            batch: Number of the batch in the epoch.
            batches: Batches in an epoch.

        Returns:
            The loss, on the device; to be read before the next step.
        """
        seed_step(self.device, self.args.seed, epoch, batch, self.rank)
        if self.erasing is not None:
            images = self.erasing(images)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        # Batches since the last update, and how many the next update has: fewer at the end of an epoch.
        accumulated = self.args.grad_accum_steps
        first = batch // accumulated * accumulated
        members = min(accumulated, batches - first)
        updates = batch + 1 == first + members
        if updates:
            self.updates += 1
        loss = self._compute(prepared(images, self.args), targets, members, updates)
        if updates:
            # Does nothing unless the schedule goes by updates.
            self.scheduler.step_update(self.updates)
        return loss

    def compute(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute a step on a batch as it is, outside of any epoch: for measurements."""
        return self._compute(prepared(images, self.args), targets, 1, True)

    def _compute(self, images: torch.Tensor, targets: torch.Tensor, members: int, updates: bool) -> torch.Tensor:
        """Forward, backward and perhaps the update: all that the device computes from a batch."""
        # Gradients are exchanged between processes where they are used, and only there.
        hold = nullcontext if updates else getattr(self.model, 'no_sync', nullcontext)
        with hold():
            with autocast(self.args):
                # On a CPU autocast leaves the loss in the dtype of the logits.
                loss = self.loss_fn(self.model(images).float(), targets)
            share = loss / members if members > 1 else loss
            self._backward(share, updates)
        if updates:
            self.optimizer.zero_grad()
            if self.ema is not None:
                self._average(self.ema)
        return loss.detach()

    def _average(self, ema: ModelEmaV3) -> None:
        """Let the averaged weights follow."""
        ema.update(self.unwrapped, step=self.updates)

    def _backward(self, loss: torch.Tensor, updates: bool) -> None:
        args = self.args
        parameters = [parameter for parameter in self.unwrapped.parameters() if parameter.requires_grad]
        if self.scaler is not None:
            self.scaler(
                loss, self.optimizer, clip_grad=args.clip_grad, clip_mode=args.clip_mode, parameters=parameters,
                need_update=updates, create_graph=self.second_order,
            )
            return
        loss.backward(create_graph=self.second_order)
        if updates:
            if args.clip_grad is not None:
                dispatch_clip_grad(parameters, args.clip_grad, mode=args.clip_mode)
            self.optimizer.step()

    def state_dict(self) -> Dict[str, Any]:
        """All that changes with a step but the weights."""
        return {
            'updates': self.updates,
            'optimizer': self.optimizer.state_dict(),
            'scheduler': self.scheduler.state_dict(),
            'scaler': self.scaler.state_dict() if self.scaler is not None else None,
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.updates = state['updates']
        # How a device computes is no state of the run, which may go on on another.
        for group, ours in zip(state['optimizer']['param_groups'], self.optimizer.param_groups):
            group.update({name: ours[name] for name in ('fused', 'foreach', 'capturable') if name in ours})
        self.optimizer.load_state_dict(state['optimizer'])
        self.scheduler.load_state_dict(state['scheduler'])
        if self.scaler is not None:
            self.scaler.load_state_dict(state['scaler'])
