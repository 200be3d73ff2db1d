"""Hardware and versions, recorded beside every result."""

import importlib.metadata
import os
import platform
from datetime import datetime
from pathlib import Path
from typing import Dict, Optional

import timm
import torch

import dit_timm

from .logs import read_csv, write_csv


def environment(device: str) -> Dict[str, str]:
    """The columns of every row that say where and with what it was measured."""
    return {
        'date': f'{datetime.now():%Y-%m-%d}',
        'device': _device_name(device),
        'device_type': torch.device(device).type,
        'cores': str(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()),
        'threads': str(torch.get_num_threads()),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'timm': timm.__version__,
        'triton': _version('triton'),
    }


def note_environment(folder: Path, device: str, processes: int, images: Optional[str] = None) -> None:
    """Add a row to the `environment.csv` of a run, which begins or resumes.

    Args:
        folder: The folder of the run.
        device: Where it trains.
        processes: In how many processes.
        images: SHA-256 of the training images, where it is known.
    """
    path = folder / 'environment.csv'
    row = {
        **environment(device), 'processes': str(processes), 'dit_timm': dit_timm.__version__,
        'images_sha256': images or '',
    }
    write_csv([*read_csv(path), row], path)


def _device_name(device: str) -> str:
    device_type = torch.device(device).type
    if device_type == 'cuda':
        return torch.cuda.get_device_name(device)
    if device_type != 'cpu':
        return device_type
    # CPUs of one name differ in their vector units, and with those in speed and last digits.
    return f'{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})'


def _cpu_name() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 'none'
