"""docs/models.md: the table of models, from the registry."""

from typing import cast

import timm
import torch
from timm.models import get_arch_pretrained_cfgs

from .. import ChannelQuadratic2d, register
from ..models.network import Network
from .markdown import markdown_table, page

_HEADINGS = ('model', 'parameters (M)', 'quadratic (M)', 'input', 'quadratic term at', 'network of', 'pretrained tags')
_PAPER = {
    'dit_convnext_tiny', 'dit_convnext_small', 'dit_convnext_base',
    'dit_resnet20', 'dit_resnet32', 'dit_resnet56', 'dit_resnet110',
}


def model_page() -> str:
    """A table with a row for each model."""
    register()
    rows = []
    for name in timm.list_models('dit_*'):
        with torch.device('meta'):
            model = cast(Network, timm.create_model(name))
        quadratic = {key: module for key, module in model.named_modules() if isinstance(module, ChannelQuadratic2d)}
        total = sum(parameter.numel() for parameter in model.parameters())
        extra = sum(module.weight.numel() for module in quadratic.values())
        places = ', '.join(f'`{key.removesuffix(".quadratic")}`' for key in quadratic)
        tags = sum(bool(cfg.has_weights) for cfg in get_arch_pretrained_cfgs(name).values())
        rows.append((
            name, f'{total / 1e6:.2f}', f'{extra / 1e6:.2f}', str(model.pretrained_cfg['input_size'][-1]), places,
            'the paper' if name in _PAPER else 'this project', str(tags or 'none'),
        ))
    return page('Models', 'which models dit_timm registers in timm', markdown_table(_HEADINGS, rows))
