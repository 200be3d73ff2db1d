"""Evaluation over a loader, mixed precision and memory format."""

from contextlib import AbstractContextManager, nullcontext
from typing import Callable, Dict, Optional, Tuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.utils import accuracy
from torch import nn
from tqdm import tqdm

from ..analysis.ablation import without_quadratic
from ..config.parts import ModelConfig
from ..data.loaders import Batches


def autocast(args: ModelConfig) -> AbstractContextManager:
    """Mixed precision as the options ask for."""
    if not args.amp:
        return nullcontext()
    return torch.autocast(torch.device(args.device).type, dtype=getattr(torch, args.amp_dtype))


def prepared(images: torch.Tensor, args: ModelConfig) -> torch.Tensor:
    """Images in the memory format that the options ask for."""
    return images.contiguous(memory_format=torch.channels_last) if args.channels_last else images


# Not torch.inference_mode: what a network keeps of a forward pass could not be trained on.
@torch.no_grad()
def evaluate(
        model: nn.Module,
        loader: Batches,
        args: ModelConfig,
        title: str,
        observe: Optional[Callable[[torch.Tensor, torch.Tensor], None]] = None,
        show: bool = True,
) -> Dict[str, float]:
    """Evaluate on every image once; over all processes where there are several, each with its share of them.

    Args:
        model: The network.
        loader: Batches of this process.
        args: Options.
        title: What the progress bar says.
        observe: Called with the logits and targets of each batch.
        show: Whether there is a progress bar.

    Returns:
        Mean cross entropy 'loss', and 'top1' and 'top5' in percent of the images.
    """
    model.eval()
    # In float64: sums that do not depend on how the images are dealt out. On the device: nothing waits for it.
    # Apple's GPUs have no float64.
    sums = torch.zeros(4, dtype=torch.float64, device='cpu' if args.device == 'mps' else args.device)
    for images, targets in tqdm(loader, desc=title, unit='batch', leave=False, disable=None if show else True):
        with autocast(args):
            logits = model(prepared(images, args))
        logits = logits.float()
        count = len(targets)
        loss = F.cross_entropy(logits, targets, reduction='sum')
        top1, top5 = accuracy(logits, targets, topk=(1, 5))
        sums += torch.stack([loss, top1 * count, top5 * count, torch.full_like(loss, count)]).to(sums.device).double()
        if observe is not None:
            observe(logits, targets)
    if dist.is_initialized():
        dist.all_reduce(sums)
    loss, top1, top5, count = sums.tolist()
    return {'loss': loss / count, 'top1': top1 / count, 'top5': top5 / count}


@torch.no_grad()
def classified(model: nn.Module, loader: Batches, args: ModelConfig) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Classify images with and without the quadratic terms of a network in evaluation mode, in one process.

    Returns:
        The class of each image, and what the network takes it for with and without them; each (images,), on the CPU.
    """
    found = []
    for images, targets in loader:
        images = prepared(images, args)
        with autocast(args):
            full = model(images).argmax(1)
            with without_quadratic(model):
                left = model(images).argmax(1)
        found.append(torch.stack([targets, full, left]).cpu())
    targets, full, left = torch.cat(found, 1)
    return targets, full, left


def summary_line(metrics: Dict[str, float], model: str, weights: str) -> str:
    """The last line of dit-train and dit-validate."""
    return f"top1={metrics['top1']:.3f} top5={metrics['top5']:.3f} model={model} weights={weights}"
