"""Batches of loaders on their way to the device."""

from typing import Any, Dict, Iterator, Tuple

import torch
from timm.data.loader import PrefetchLoader
from torch.utils.data import DataLoader


class Prefetched:
    """timm's PrefetchLoader, whose batches stay what they are until the device has read them.

    timm copies batches in a stream of its own and leaves their memory to the next copy as soon as Python has dropped
    them, which is before the device has read them where nothing waits for it in between.

    Args:
        loader: Batches in the memory of the host.
        config: Mean, std and input size, see `data_config`.
        device: Where they go.
    """

    def __init__(self, loader: DataLoader, config: Dict[str, Any], device: torch.device) -> None:
        self.loader = PrefetchLoader(
            loader, mean=config['mean'], std=config['std'], channels=config['input_size'][0], device=device,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.loader:
            for tensor in (images, labels):
                if tensor.is_cuda:
                    tensor.record_stream(torch.cuda.current_stream(tensor.device))
            yield images, labels
