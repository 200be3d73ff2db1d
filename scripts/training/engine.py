"""One epoch of training, and evaluation."""

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import Dict

import torch
import torch.nn.functional as F
from timm.utils import AverageMeter, NativeScaler, accuracy, dispatch_clip_grad
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm


def autocast(args: argparse.Namespace) -> AbstractContextManager:
    """Mixed precision as the options ask for."""
    if not args.amp:
        return nullcontext()
    return torch.autocast(torch.device(args.device).type, dtype=getattr(torch, args.amp_dtype))


def _images(images: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last) if args.channels_last else images


def train_one_epoch(
        model: nn.Module,
        loader: DataLoader,
        loss_fn: nn.Module,
        optimizer: torch.optim.Optimizer,
        args: argparse.Namespace,
        title: str,
) -> Dict[str, float]:
    """Train on every batch once.

    Args:
        model: The network.
        loader: Training batches.
        loss_fn: Maps logits and targets to a loss.
        optimizer: The optimizer, its learning rate set for the epoch.
        args: Options.
        title: What the progress bar says.

    Returns:
        The mean training loss.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    model.train()
    # Float16 gradients underflow unless the loss is scaled up; bfloat16 has the range of float32.
    scaler = NativeScaler(device=args.device) if args.amp and args.amp_dtype == 'float16' else None
    losses = AverageMeter()
    progress = tqdm(loader, desc=title, unit='batch', leave=False, disable=None)
    for images, targets in progress:
        with autocast(args):
            loss = loss_fn(model(_images(images, args)), targets)
        if not torch.isfinite(loss):
            raise FloatingPointError(f'{title}: the loss is {loss.item()}. Try a lower --lr or --clip-grad 1.')
        optimizer.zero_grad()
        if scaler is not None:
            scaler(loss, optimizer, clip_grad=args.clip_grad, parameters=model.parameters())
        else:
            loss.backward()
            if args.clip_grad is not None:
                dispatch_clip_grad(model.parameters(), args.clip_grad)
            optimizer.step()
        losses.update(loss.item(), len(images))
        progress.set_postfix(loss=f'{losses.avg:.3f}', lr=f'{optimizer.param_groups[0]["lr"]:.2g}')
    return {'loss': losses.avg}


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader, args: argparse.Namespace, title: str) -> Dict[str, float]:
    """Evaluate on every batch.

    Returns:
        Mean cross entropy 'loss', and 'top1' and 'top5' in percent of the images.
    """
    model.eval()
    meters = {name: AverageMeter() for name in ('loss', 'top1', 'top5')}
    for images, targets in tqdm(loader, desc=title, unit='batch', leave=False, disable=None):
        with autocast(args):
            logits = model(_images(images, args))
        logits = logits.float()
        top1, top5 = accuracy(logits, targets, topk=(1, 5))
        values = {'loss': F.cross_entropy(logits, targets), 'top1': top1, 'top5': top5}
        for name, value in values.items():
            meters[name].update(value.item(), len(images))
    return {name: meter.avg for name, meter in meters.items()}


def summary_line(metrics: Dict[str, float], model: str, weights: str) -> str:
    """The line that both scripts end with."""
    return f"top1={metrics['top1']:.3f} top5={metrics['top5']:.3f} model={model} weights={weights}"
