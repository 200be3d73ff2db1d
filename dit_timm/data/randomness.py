"""Randomness that depends on where a run stands and on nothing before it.

Each image is augmented with generators seeded by (seed, epoch, number of the image), each batch trained on with
generators seeded by (seed, epoch, batch, process). So the state of a generator is never something to save, a run that
resumes in the middle of an epoch draws what it would have drawn, and images do not depend on how many processes load
them.
"""

import hashlib
import random
import struct

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """A 32-bit seed from some numbers below 2^63; different for every combination, as far as 32 bits go."""
    # For each image: NumPy's SeedSequence would take twenty times as long.
    packed = struct.pack(f'<{len(numbers)}q', *numbers)
    return int.from_bytes(hashlib.blake2s(packed, digest_size=4).digest(), 'little')


def seed_cpu(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's generators of this process."""
    seed = seed_of(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    # Not torch.manual_seed, which looks after the generators of all devices each time.
    torch.default_generator.manual_seed(seed)


def seed_step(device: torch.device, *numbers: int) -> None:
    """Seed the generators that training on a batch draws from."""
    seed_cpu(*numbers)
    if device.type == 'cuda':
        torch.cuda.manual_seed(seed_of(*numbers))
