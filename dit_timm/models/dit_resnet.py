"""Dit-ResNet for ImageNet: ResNet with a quadratic term across channels in the first block of the second stage.

These networks are this project's. The paper ("Dendritic Integration Inspired Artificial Neural Networks Capture Data
Correlation", Liu, Ma, Li, Zhou, NeurIPS 2024) has ResNets for CIFAR only, see `dit_resnet_cifar`. The place is
theirs; in front of the quadratic term stands an instance norm, which works at any input size, instead of their
LayerNorm over the map, and the term is added to the convolution's output in front of bn2, with no factor, so that a
zero quadratic term is exactly the base network.
"""

from typing import Any, Dict, Sequence, Union

import torch
from timm.models import ResNet, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck

from ..layers.dit_conv import Norm
from ..layers.surgery import add_dendrites
from ._authors_checkpoints import unwrap
from ._base_weights import add_zero_quadratics, build_dit_model, init_cfgs

__all__ = ['DitResNet']  # register_model adds each entrypoint

_DEPTHS = (18, 34, 50, 101, 152)


class DitResNet(ResNet):
    """timm's ResNet with dendrites.

    Args:
        *args: As for `timm.models.ResNet`.
        dendrites: Names or patterns of the convolutions with a quadratic term.
        quadratic_norm: Norm in front of the quadratic term, see `dit_timm.DitConv2d`.
        **kwargs: As for `timm.models.ResNet`.
    """

    def __init__(
            self,
            *args,
            dendrites: Union[str, Sequence[str]] = 'layer2.0.conv2',
            quadratic_norm: Norm = 'instance',
            **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        add_dendrites(self, dendrites, quadratic_norm=quadratic_norm)


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: DitResNet) -> Dict[str, torch.Tensor]:
    """Read weights of a ResNet (an `_init` tag) and of this package."""
    return add_zero_quadratics(unwrap(state_dict), model)


def _create_dit_resnet(variant: str, pretrained: bool = False, **kwargs) -> DitResNet:
    return build_dit_model(DitResNet, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


default_cfgs = generate_default_cfgs({
    **init_cfgs({f'dit_resnet{depth}': f'resnet{depth}' for depth in _DEPTHS}),
    'test_dit_resnet.untrained': dict(
        input_size=(3, 160, 160), pool_size=(5, 5), crop_pct=0.95, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        first_conv='conv1.0', classifier='fc', license='apache-2.0',
    ),
})


@register_model
def dit_resnet18(pretrained: bool = False, **kwargs) -> DitResNet:
    """ResNet-18 with a quadratic term in layer2.0.conv2."""
    model_args = dict(block=BasicBlock, layers=(2, 2, 2, 2))
    return _create_dit_resnet('dit_resnet18', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_resnet34(pretrained: bool = False, **kwargs) -> DitResNet:
    """ResNet-34 with a quadratic term in layer2.0.conv2."""
    model_args = dict(block=BasicBlock, layers=(3, 4, 6, 3))
    return _create_dit_resnet('dit_resnet34', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_resnet50(pretrained: bool = False, **kwargs) -> DitResNet:
    """ResNet-50 with a quadratic term in layer2.0.conv2."""
    model_args = dict(block=Bottleneck, layers=(3, 4, 6, 3))
    return _create_dit_resnet('dit_resnet50', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_resnet101(pretrained: bool = False, **kwargs) -> DitResNet:
    """ResNet-101 with a quadratic term in layer2.0.conv2."""
    model_args = dict(block=Bottleneck, layers=(3, 4, 23, 3))
    return _create_dit_resnet('dit_resnet101', pretrained, **dict(model_args, **kwargs))


@register_model
def dit_resnet152(pretrained: bool = False, **kwargs) -> DitResNet:
    """ResNet-152 with a quadratic term in layer2.0.conv2."""
    model_args = dict(block=Bottleneck, layers=(3, 8, 36, 3))
    return _create_dit_resnet('dit_resnet152', pretrained, **dict(model_args, **kwargs))


@register_model
def test_dit_resnet(pretrained: bool = False, **kwargs) -> DitResNet:
    """timm's test_resnet with a quadratic term in layer2.0.conv2."""
    model_args = dict(
        block=[BasicBlock, BasicBlock, Bottleneck, BasicBlock], layers=(1, 1, 1, 1),
        stem_width=16, stem_type='deep', avg_down=True, channels=(32, 48, 48, 96),
    )
    return _create_dit_resnet('test_dit_resnet', pretrained, **dict(model_args, **kwargs))
