"""Dit-ConvNeXt: ConvNeXt with a quadratic term across channels in one depthwise convolution.

Paper: "Dendritic Integration Inspired Artificial Neural Networks Capture Data Correlation", Liu, Ma, Li, Zhou,
NeurIPS 2024; the authors' code is at
https://github.com/liuchongming1999/Dendritic-Integration-Inspired-Artificial-Neural-Networks-Capture-Data-Correlation-NeurIPS-2024

In block 2 of stage 0, `x = conv_dw(x) + Q(x)`; the rest is ConvNeXt as timm has it. The paper's networks are T, S
and B. Where stage 0 has two blocks (atto to nano) the authors' code gives a network without any quadratic term;
here the last block of stage 0 has it.
"""

import re
from typing import Any, Dict, Sequence, Union

import torch
from timm.models import ConvNeXt, generate_default_cfgs, register_model
from timm.models.convnext import checkpoint_filter_fn as convnext_filter_fn

from ..layers.dit_conv import Norm
from ..layers.surgery import add_dendrites
from ._authors_checkpoints import square, unwrap
from ._base_weights import add_zero_quadratics, build_dit_model, init_cfgs

__all__ = ['DitConvNeXt']  # register_model adds each entrypoint

_SIZES = ('atto', 'femto', 'pico', 'nano', 'tiny', 'small', 'base', 'large')


class DitConvNeXt(ConvNeXt):
    """timm's ConvNeXt with dendrites.

    Args:
        *args: As for `timm.models.ConvNeXt`.
        dendrites: Names or patterns of the convolutions with a quadratic term; None for the paper's place.
        quadratic_norm: Norm in front of the quadratic term, see `dit_timm.DitConv2d`; the paper has none.
        **kwargs: As for `timm.models.ConvNeXt`.
    """

    def __init__(
            self,
            *args,
            dendrites: Union[str, Sequence[str], None] = None,
            quadratic_norm: Norm = None,
            **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        if dendrites is None:
            block = min(2, len([*self.get_submodule('stages.0.blocks').children()]) - 1)
            dendrites = f'stages.0.blocks.{block}.conv_dw'
        add_dendrites(self, dendrites, quadratic_norm=quadratic_norm)


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: DitConvNeXt) -> Dict[str, torch.Tensor]:
    """Read weights of a ConvNeXt (an `_init` tag), of this package, and of the authors' ImageNet training."""
    out = {}
    for key, value in convnext_filter_fn(unwrap(state_dict), model).items():
        if key.endswith('.quadratic.quadratic'):
            key = re.sub(r'\.quadratic\.quadratic$', '.conv_dw.quadratic.weight', key)
            value = square(value)
        out[key] = value
    return add_zero_quadratics(out, model)


def _create_dit_convnext(variant: str, pretrained: bool = False, **kwargs) -> DitConvNeXt:
    return build_dit_model(
        DitConvNeXt,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), flatten_sequential=True),
        **kwargs,
    )


default_cfgs = generate_default_cfgs({
    **init_cfgs({f'dit_convnext_{size}': f'convnext_{size}' for size in _SIZES}),
    'test_dit_convnext.untrained': dict(
        input_size=(3, 160, 160), pool_size=(5, 5), crop_pct=0.95, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        first_conv='stem.0', classifier='head.fc', license='apache-2.0',
    ),
})


@register_model
def dit_convnext_atto(pretrained: bool = False, **kwargs) -> DitConvNeXt:
    """ConvNeXt-Atto with a quadratic term in stages.0.blocks.1.conv_dw."""
    model_args = dict(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True)
    return _create_dit_convnext('dit_convnext_atto', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_convnext_femto(pretrained: bool = False, **kwargs) -> DitConvNeXt:
    """ConvNeXt-Femto with a quadratic term in stages.0.blocks.1.conv_dw."""
    model_args = dict(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), conv_mlp=True)
    return _create_dit_convnext('dit_convnext_femto', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_convnext_pico(pretrained: bool = False, **kwargs) -> DitConvNeXt:
    """ConvNeXt-Pico with a quadratic term in stages.0.blocks.1.conv_dw."""
    model_args = dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), conv_mlp=True)
    return _create_dit_convnext('dit_convnext_pico', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_convnext_nano(pretrained: bool = False, **kwargs) -> DitConvNeXt:
    """ConvNeXt-Nano with a quadratic term in stages.0.blocks.1.conv_dw."""
    model_args = dict(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), conv_mlp=True)
    return _create_dit_convnext('dit_convnext_nano', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_convnext_tiny(pretrained: bool = False, **kwargs) -> DitConvNeXt:
    """The paper's Dit-ConvNeXt-T."""
    model_args = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))
    return _create_dit_convnext('dit_convnext_tiny', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_convnext_small(pretrained: bool = False, **kwargs) -> DitConvNeXt:
    """The paper's Dit-ConvNeXt-S."""
    model_args = dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768))
    return _create_dit_convnext('dit_convnext_small', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_convnext_base(pretrained: bool = False, **kwargs) -> DitConvNeXt:
    """The paper's Dit-ConvNeXt-B."""
    model_args = dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024))
    return _create_dit_convnext('dit_convnext_base', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_convnext_large(pretrained: bool = False, **kwargs) -> DitConvNeXt:
    """ConvNeXt-L with a quadratic term at the paper's place."""
    model_args = dict(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536))
    return _create_dit_convnext('dit_convnext_large', pretrained, **dict(model_args, **kwargs))


@register_model
def test_dit_convnext(pretrained: bool = False, **kwargs) -> DitConvNeXt:
    """timm's test_convnext with a quadratic term in its only block of stage 0."""
    model_args = dict(depths=(1, 2, 4, 2), dims=(24, 32, 48, 64), norm_eps=1e-5, act_layer='gelu_tanh')
    return _create_dit_convnext('test_dit_convnext', pretrained, **dict(model_args, **kwargs))
