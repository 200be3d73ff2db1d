"""The processes of a run: one, or those that torchrun started."""

from types import SimpleNamespace

import torch
import torch.distributed as dist
from timm.utils import init_distributed_device
from torch import nn

from ..errors import InvalidInputError


class ProcessGroup:
    """Which process this is, and what they do together.

    Args:
        device: The device that is asked for.

    Attributes:
        device: This process's own.

    Raises:
        InvalidInputError: There is no such device.
    """

    def __init__(self, device: str) -> None:
        # timm's words for where a process stands.
        place = SimpleNamespace(device=device)
        try:
            torch.device(device)
            self.device = init_distributed_device(place)
        except (RuntimeError, AssertionError) as error:
            # The second is timm's word for a device that is not there.
            raise InvalidInputError(f'--device {device} cannot be used: {error}') from error
        self.rank, self.world_size = place.rank, place.world_size

    @property
    def is_primary(self) -> bool:
        """Whether this one prints and writes."""
        return self.rank == 0

    def describe(self) -> str:
        """The number of processes in words, if there are several."""
        return f', {self.world_size} processes' if self.world_size > 1 else ''

    def parallel(self, model: nn.Module) -> nn.Module:
        """Wrap a network so that gradients are averaged over all processes."""
        if self.world_size == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == 'cuda' else None,
        )

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item() / self.world_size

    def barrier(self) -> None:
        """Wait until all have come here."""
        if self.world_size > 1:
            dist.barrier()

    def broadcast(self, text: str) -> str:
        """The text of the first process, for all."""
        if self.world_size == 1:
            return text
        texts = [text]
        dist.broadcast_object_list(texts)
        return texts[0]

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()
