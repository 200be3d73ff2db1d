"""Files written whole or not at all, and the folder for what can be made again."""

import os
from pathlib import Path

import torch


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all: under another name first, and on the disk before it is renamed.

    Raises:
        OSError: It could not be written; what was at `path` before still is.
    """
    unfinished = path.with_name(f'{path.name}.unfinished')
    try:
        with unfinished.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk; not every platform can."""
    if os.name != 'posix':
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def default_cache() -> Path:
    """The folder of what can be made again, beside what torch keeps: `TORCH_HOME` moves both."""
    return Path(torch.hub.get_dir()).parent / 'dit_timm'
