"""The README's table of models, from the registry.

`python scripts/model_table.py` rewrites the block between the markers; `--check` fails if that would change it.
"""

import sys
from typing import List, Optional

import readme_block
import timm
import torch
from timm.models import get_arch_pretrained_cfgs

import dit_timm
from dit_timm import ChannelQuadratic2d

_PAPER = {
    'dit_convnext_tiny', 'dit_convnext_small', 'dit_convnext_base',
    'dit_resnet20', 'dit_resnet32', 'dit_resnet56', 'dit_resnet110',
}


def table() -> str:
    """A Markdown table with a row for each model."""
    dit_timm.register()
    rows = [
        '| model | parameters (M) | quadratic (M) | input | quadratic term at | network of | pretrained tags |',
        '|---|---|---|---|---|---|---|',
    ]
    for name in timm.list_models('dit_*'):
        with torch.device('meta'):
            model = timm.create_model(name)
        quadratic = {key: module for key, module in model.named_modules() if isinstance(module, ChannelQuadratic2d)}
        total = sum(parameter.numel() for parameter in model.parameters())
        extra = sum(module.weight.numel() for module in quadratic.values())
        places = ', '.join(f'`{key.removesuffix(".quadratic")}`' for key in quadratic)
        tags = sum(bool(cfg.has_weights) for cfg in get_arch_pretrained_cfgs(name).values())
        size = model.pretrained_cfg['input_size'][-1]
        origin = 'the paper' if name in _PAPER else 'this project'
        rows.append(
            f'| {name} | {total / 1e6:.2f} | {extra / 1e6:.2f} | {size} | {places} | {origin} | {tags or "none"} |'
        )
    return '\n'.join(rows)


def main(argv: Optional[List[str]] = None) -> int:
    """Write or check the table; returns the exit code."""
    return readme_block.main('models', 'scripts/model_table.py', table, __doc__, argv)


if __name__ == '__main__':
    sys.exit(main())
