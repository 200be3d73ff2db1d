"""The models. Importing this package registers them in timm's registry."""

from .dit_convnext import DitConvNeXt as DitConvNeXt
from .dit_resnet import DitResNet as DitResNet
from .dit_resnet_cifar import DitResNetCifar as DitResNetCifar

__all__ = ['DitConvNeXt', 'DitResNet', 'DitResNetCifar']
