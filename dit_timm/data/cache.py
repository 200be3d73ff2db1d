"""Where files are kept that can be made again."""

from pathlib import Path

import torch


def default_cache() -> Path:
    """The folder, beside what torch keeps: `TORCH_HOME` moves both."""
    return Path(torch.hub.get_dir()).parent / 'dit_timm'
