"""The network that the options name."""

import argparse
import difflib
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg_value
from torch import nn

from dit_timm.models.inputs import input_arguments

from . import variants


def build_model(args: argparse.Namespace, **kwargs: Any) -> nn.Module:
    """Create the network on its device and in its memory format.

    Args:
        args: Options.
        **kwargs: More arguments of `timm.create_model`; `--model-kwargs` wins.

    Raises:
        SystemExit: timm knows no such model; near names are listed.
        ValueError: `--variant` is not one of this network.
    """
    if not timm.is_model(args.model):
        near = difflib.get_close_matches(args.model, timm.list_models(), n=3)
        raise SystemExit(f'--model {args.model} is not known to timm. Near names: {", ".join(near) or "none"}.')
    kwargs.update(input_arguments(vars(args), get_pretrained_cfg_value(args.model, 'fixed_input_size')))
    model = timm.create_model(args.model, pretrained=args.pretrained, num_classes=args.num_classes, **kwargs)
    variants.apply(model, args.variant).to(args.device)
    return model.to(memory_format=torch.channels_last) if args.channels_last else model
