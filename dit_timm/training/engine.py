"""One epoch of training, and evaluation."""

from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Callable, Dict, Iterator, Optional

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.utils import accuracy
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..config.parts import ModelConfig
from .wide_bfloat16 import WideBfloat16, has_bfloat16_kernels


def lacks_bfloat16(args: ModelConfig) -> bool:
    """Whether the options ask for bfloat16 on a CPU for which torch has no kernels of it."""
    on_cpu = torch.device(args.device).type == 'cpu'
    return args.amp and args.amp_dtype == 'bfloat16' and on_cpu and not has_bfloat16_kernels()


def widened(args: ModelConfig, compiled: bool = False) -> AbstractContextManager:
    """Inside, bfloat16 goes at the speed of float32 where it would be slow.

    Args:
        args: Options.
        compiled: Whether the network is, which goes its own way.
    """
    return WideBfloat16() if lacks_bfloat16(args) and not compiled else nullcontext()


@contextmanager
def autocast(args: ModelConfig, compiled: bool = False) -> Iterator[None]:
    """Mixed precision as the options ask for, `widened`; the backward pass belongs into `widened` too."""
    if not args.amp:
        yield
        return
    precision = torch.autocast(torch.device(args.device).type, dtype=getattr(torch, args.amp_dtype))
    with widened(args, compiled), precision:
        yield


def prepared(images: torch.Tensor, args: ModelConfig) -> torch.Tensor:
    """Images in the memory format that the options ask for."""
    return images.contiguous(memory_format=torch.channels_last) if args.channels_last else images


# Not torch.inference_mode: see WideBfloat16.
@torch.no_grad()
def evaluate(
        model: nn.Module,
        loader: DataLoader,
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


def summary_line(metrics: Dict[str, float], model: str, weights: str) -> str:
    """The line that both scripts end with."""
    return f"top1={metrics['top1']:.3f} top5={metrics['top5']:.3f} model={model} weights={weights}"
