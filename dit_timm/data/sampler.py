"""Batches of images, from any batch of any epoch on."""

from typing import Iterator, List, Tuple

import torch
from torch.utils.data import Sampler

from .randomness import seed_of

# Apart from the seeds of images and steps, which have three or four numbers of their own.
_ORDER = 1 << 20


class EpochBatches(Sampler):
    """The batches of this process in an epoch: an order of all images that depends on seed and epoch alone.

    A batch of all processes together is the next part of that order, dealt out in turns, so that it does not depend
    on the number of processes, for a given global batch. Images that fill no batch are left out; they differ from
    epoch to epoch.

    Args:
        size: Images.
        batch_size: Images in a batch of one process.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Processes.
    """

    # An epoch can begin at any batch.
    starts_anywhere = True

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        return self.size // (self.batch_size * self.world_size)

    def __len__(self) -> int:
        return self.batches - self.start

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Let the next iteration be over an epoch, from a batch on."""
        self.epoch, self.start = epoch, start

    def order(self) -> torch.Tensor:
        """Numbers of the images of this epoch, a row for each of this process's batches, on the CPU."""
        generator = torch.Generator().manual_seed(seed_of(_ORDER, self.seed, self.epoch))
        together = self.batch_size * self.world_size
        order = torch.randperm(self.size, generator=generator)[:self.batches * together]
        return order.view(self.batches, together)[:, self.rank::self.world_size]

    def __iter__(self) -> Iterator[List[Tuple[int, int]]]:
        """Keys of `Images`."""
        for row in self.order()[self.start:].tolist():
            yield [(self.epoch, number) for number in row]
