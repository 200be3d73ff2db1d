"""Dit-ResNet for CIFAR, as in the paper.

Paper: "Dendritic Integration Inspired Artificial Neural Networks Capture Data Correlation", Liu, Ma, Li, Zhou,
NeurIPS 2024; the authors' code is at
https://github.com/liuchongming1999/Dendritic-Integration-Inspired-Artificial-Neural-Networks-Capture-Data-Correlation-NeurIPS-2024

The CIFAR ResNet of He et al. (https://arxiv.org/abs/1512.03385): three stages of 16, 32 and 64 channels, with 1x1
convolutions as shortcuts, and features averaged to a 2x2 grid (256 features at the head). In the first block of the
second stage, `(bn2(conv2(h)) + Q(LN(h))) / 2`, where LN normalises each map over its positions.

Two things differ from the authors' code. Its quadratic term comes out with height and width exchanged; ours does not,
unless `transposed_quadratic` is set. And it works at 32x32 only; ours takes `img_size`.
"""

import logging
import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple, Union, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SelectAdaptivePool2d, to_2tuple
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from torch import nn

from ..layers.quadratic import ChannelQuadratic2d
from ._authors_checkpoints import from_cifar, is_cifar, unwrap
from ._base_weights import build_dit_model
from ._timm_private import feature_take_indices

__all__ = ['DitResNetCifar']  # register_model adds each entrypoint

_logger = logging.getLogger(__name__)

_CHANNELS = (16, 32, 64)
_QUADRATIC_STAGE = 1
_HEAD_GRID = 2

_WEIGHTS = Path(__file__).parent.parent / 'weights'
_CIFAR10 = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


class CifarBlock(nn.Module):
    """Basic block of a CIFAR ResNet; with `map_size`, the paper's quadratic block.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        stride: Stride of the first convolution.
        map_size: Height and width of the block's output. If given, the block has a quadratic term, normalised over
            maps of that size.
        transposed_quadratic: Exchange height and width of the quadratic term, as the authors' code does.
        drop_path: Stochastic depth rate.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
            self,
            in_chs: int,
            out_chs: int,
            stride: int = 1,
            map_size: Optional[Tuple[int, int]] = None,
            transposed_quadratic: bool = False,
            drop_path: float = 0.,
            device: Union[torch.device, str, None] = None,
            dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        dd: Dict[str, Any] = {'device': device, 'dtype': dtype}
        self.transposed_quadratic = transposed_quadratic
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(out_chs, **dd)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(out_chs, **dd)
        self.act2 = nn.ReLU()
        self.quadratic_norm = nn.LayerNorm(list(map_size), **dd) if map_size else None
        self.quadratic = ChannelQuadratic2d(out_chs, **dd) if map_size else None
        self.drop_path = DropPath(drop_path) if drop_path > 0. else nn.Identity()
        self.downsample = nn.Identity() if stride == 1 and in_chs == out_chs else nn.Sequential(
            nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False, **dd),
            nn.BatchNorm2d(out_chs, **dd),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_chs, H, W) to (N, out_chs, ceil(H / stride), ceil(W / stride))."""
        h = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(h))
        if self.quadratic is not None and self.quadratic_norm is not None:
            q = self.quadratic(self.quadratic_norm(h))
            if self.transposed_quadratic:
                q = q.transpose(-2, -1)
            y = (y + q) / 2
        return self.act2(self.drop_path(y) + self.downsample(x))


class DitResNetCifar(nn.Module):
    """CIFAR ResNet with one quadratic block.

    Args:
        stage_depth: Blocks in each stage; the network has `6 * stage_depth + 2` layers.
        num_classes: Classes; 0 for no classifier.
        in_chans: Input channels.
        global_pool: How features are pooled to the 2x2 grid: 'avg', 'max', 'avgmax', 'catavgmax'; '' for no pooling.
        img_size: Height and width of the input, an int or a pair. The norm in front of the quadratic term has a
            weight for every position, hence a network is made for one size.
        quadratic: False for the plain twin: the same network with ordinary blocks only.
        transposed_quadratic: Reproduce the authors' code, whose quadratic term has height and width exchanged.
            Needed for checkpoints trained with it; needs a square `img_size`.
        drop_rate: Dropout in front of the classifier.
        drop_path_rate: Stochastic depth rate of the last block.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `transposed_quadratic` with maps that are not square, or `global_pool` is unknown.
    """

    def __init__(
            self,
            stage_depth: int,
            num_classes: int = 10,
            in_chans: int = 3,
            global_pool: str = 'avg',
            img_size: Union[int, Tuple[int, int]] = 32,
            quadratic: bool = True,
            transposed_quadratic: bool = False,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: Union[torch.device, str, None] = None,
            dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        dd: Dict[str, Any] = {'device': device, 'dtype': dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.img_size = cast(Tuple[int, int], to_2tuple(img_size))
        self.transposed_quadratic = transposed_quadratic
        if transposed_quadratic and self.img_size[0] != self.img_size[1]:
            raise ValueError(f'transposed_quadratic needs a square img_size; got {self.img_size}.')
        self.fixed_size = quadratic

        self.conv1 = nn.Conv2d(in_chans, _CHANNELS[0], 3, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(_CHANNELS[0], **dd)
        self.act1 = nn.ReLU()

        self.feature_info = []
        stages = []
        shape = len(_CHANNELS), stage_depth
        drop_paths = torch.linspace(0, drop_path_rate, shape[0] * shape[1], device='cpu').view(shape).tolist()
        in_chs = _CHANNELS[0]
        for stage, out_chs in enumerate(_CHANNELS):
            reduction = 2 ** stage
            map_size = tuple(math.ceil(size / reduction) for size in self.img_size)
            blocks = []
            for block in range(stage_depth):
                is_quadratic = quadratic and stage == _QUADRATIC_STAGE and block == 0
                blocks.append(CifarBlock(
                    in_chs, out_chs,
                    stride=2 if block == 0 and stage > 0 else 1,
                    map_size=map_size if is_quadratic else None,
                    transposed_quadratic=transposed_quadratic,
                    drop_path=drop_paths[stage][block],
                    **dd,
                ))
                in_chs = out_chs
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append(dict(num_chs=out_chs, reduction=reduction, module=f'layer{stage + 1}'))
        self.layer1, self.layer2, self.layer3 = stages

        self.num_features = _CHANNELS[-1]
        self._create_head(num_classes, global_pool, **dd)

    def _create_head(self, num_classes: int, global_pool: str, **dd: Any) -> None:
        known = ('avg', 'max', 'avgmax', 'catavgmax', '')
        if global_pool not in known:
            raise ValueError(f'global_pool must be one of {known}; got {global_pool!r}.')
        self.global_pool = SelectAdaptivePool2d(_HEAD_GRID, pool_type=global_pool, flatten=bool(global_pool))
        multiplier = self.global_pool.feat_mult() if global_pool else 1
        self.head_hidden_size = self.num_features * _HEAD_GRID ** 2 * multiplier
        self.fc = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    @torch.jit.ignore()
    def no_weight_decay(self) -> Set[str]:
        """Parameters that timm's optimizers do not decay: the norm's, which its shape alone tells from a weight."""
        return {name for name, _ in self.named_parameters() if name.endswith('quadratic_norm.weight')}

    @torch.jit.ignore()
    def group_matcher(self, coarse: bool = False) -> Dict[str, str]:
        """Regular expressions that group parameters by layer, for layer decay."""
        return dict(stem=r'^conv1|bn1', blocks=r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)')

    @torch.jit.ignore()
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each block in backward."""
        self.grad_checkpointing = enable

    @torch.jit.ignore()
    def get_classifier(self) -> nn.Module:
        """The classifier: (N, head_hidden_size) to (N, num_classes)."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the head, in the dtype and on the device of the network.

        Args:
            num_classes: Classes; 0 for none.
            global_pool: See the class; None to keep the pooling.
        """
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        weight = self.conv1.weight
        self._create_head(num_classes, pool_type, device=weight.device, dtype=weight.dtype)

    def _check_size(self, x: torch.Tensor) -> None:
        if self.fixed_size:
            own = f'the network is made for {self.img_size[0]}x{self.img_size[1]}: create it with img_size=...'
            torch._assert(x.shape[-2] == self.img_size[0], f'The input is {x.shape[-2]} high, and {own}')
            torch._assert(x.shape[-1] == self.img_size[1], f'The input is {x.shape[-1]} wide, and {own}')

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: Union[int, List[int], None] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Features of the stages.

        Args:
            x: Images, (N, in_chans, H, W).
            indices: The last n stages if an int, all if None, those named if a list.
            norm: Unused; the network has no final norm.
            stop_early: Stop after the last stage asked for.
            output_fmt: 'NCHW'.
            intermediates_only: Return the list alone.

        Returns:
            The last features and the list of features, or the list alone.
        """
        assert output_fmt == 'NCHW', f'output_fmt must be NCHW; got {output_fmt}.'
        self._check_size(x)
        stages = [self.layer1, self.layer2, self.layer3]
        take_indices, max_index = feature_take_indices(len(stages), indices)
        intermediates = []
        x = self.act1(self.bn1(self.conv1(x)))
        for index, stage in enumerate(stages[:max_index + 1] if stop_early else stages):
            x = self._forward_stage(stage, x)
            if index in take_indices:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
            self,
            indices: Union[int, List[int]] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> List[int]:
        """Drop the stages behind the last one asked for; returns the indices of those asked for."""
        take_indices, max_index = feature_take_indices(len(_CHANNELS), indices)
        for stage in range(max_index + 1, len(_CHANNELS)):
            # Empty, not Identity, since checkpointing iterates over a stage.
            setattr(self, f'layer{stage + 1}', nn.Sequential())
        if prune_head or max_index < len(_CHANNELS) - 1:
            # The classifier is sized for the features of the last stage, so it goes with that stage.
            self.reset_classifier(0, '')
        return take_indices

    def _forward_stage(self, stage: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_chans, H, W) to features (N, 64, ceil(H / 4), ceil(W / 4))."""
        self._check_size(x)
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map features to logits (N, num_classes), or with `pre_logits` to (N, head_hidden_size)."""
        x = self.global_pool(x)
        if self.drop_rate > 0.:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _resize_norm(
        state_dict: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor],
) -> Dict[str, torch.Tensor]:
    """Interpolate the affine maps (H, W) of the quadratic term's norm, the only weights that know the input size."""
    resized = dict(state_dict)
    for key, value in state_dict.items():
        if '.quadratic_norm.' in key and key in own and value.shape != own[key].shape:
            size = tuple(own[key].shape)
            _logger.info(f'Interpolated {key} from {tuple(value.shape)} to {size}.')
            resized[key] = F.interpolate(value.float()[None, None], size, mode='bilinear')[0, 0]
    return resized


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: DitResNetCifar) -> Dict[str, torch.Tensor]:
    """Read weights of this package and of the authors' CIFAR training, for any input size of the network.

    Raises:
        ValueError: They are a Dit network's, and the network is a plain one; or they are this package's, which were not
            trained with transposed maps, and the network has those.
    """
    state_dict, cfg = unwrap(state_dict), cast(Dict[str, Any], model.pretrained_cfg)
    if is_cifar(state_dict):
        if not model.transposed_quadratic:
            _logger.warning(
                "These weights come from the authors' code, whose quadratic term has height and width exchanged. "
                "Create the model with transposed_quadratic=True for the network that was trained."
            )
        state_dict = from_cifar(state_dict)
    elif model.transposed_quadratic and Path(cfg.get('file') or '').parent == _WEIGHTS:
        raise ValueError(
            'The weights in this package were trained without transposed_quadratic=True, which makes another network. '
            'Leave it out; or, for a checkpoint of the authors, name it: pretrained_cfg_overlay=dict(file=...).'
        )
    own = model.state_dict()
    if any('.quadratic.' in key for key in state_dict) and not any('.quadratic.' in key for key in own):
        raise ValueError(
            'These weights are a Dit network\'s, and quadratic=False makes the plain one, which is another network. '
            'Leave quadratic=False out, or pass pretrained=False.'
        )
    return _resize_norm(state_dict, own)


def _create_dit_resnet_cifar(variant: str, pretrained: bool = False, **kwargs) -> DitResNetCifar:
    return build_dit_model(
        DitResNetCifar,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2)),
        **kwargs,
    )


def _cfg(**kwargs) -> Dict[str, Any]:
    return {
        'num_classes': 10, 'input_size': (3, 32, 32), 'fixed_input_size': True, 'pool_size': (8, 8),
        'crop_pct': 1.0, 'interpolation': 'bicubic',
        'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2023, 0.1994, 0.2010),
        'first_conv': 'conv1', 'classifier': 'fc',
        'license': 'apache-2.0',
        'paper_name': 'Dendritic Integration Inspired Artificial Neural Networks Capture Data Correlation',
        **kwargs,
    }


default_cfgs = generate_default_cfgs({
    # In the package; see hub/results/shipped.csv.
    'dit_resnet20.cifar10': _cfg(file=str(_WEIGHTS / 'dit_resnet20.cifar10.safetensors'), label_names=_CIFAR10),
    **{f'dit_resnet{depth}.untrained': _cfg() for depth in (20, 32, 44, 56, 110)},
})


@register_model
def dit_resnet20(pretrained: bool = False, **kwargs) -> DitResNetCifar:
    """The paper's Dit-ResNet-20 for CIFAR."""
    return _create_dit_resnet_cifar('dit_resnet20', pretrained, **dict(dict(stage_depth=3), **kwargs))


@register_model
def dit_resnet32(pretrained: bool = False, **kwargs) -> DitResNetCifar:
    """The paper's Dit-ResNet-32 for CIFAR."""
    return _create_dit_resnet_cifar('dit_resnet32', pretrained, **dict(dict(stage_depth=5), **kwargs))


@register_model
def dit_resnet44(pretrained: bool = False, **kwargs) -> DitResNetCifar:
    """The paper's network with 44 layers (the paper has 20, 32, 56 and 110)."""
    return _create_dit_resnet_cifar('dit_resnet44', pretrained, **dict(dict(stage_depth=7), **kwargs))


@register_model
def dit_resnet56(pretrained: bool = False, **kwargs) -> DitResNetCifar:
    """The paper's Dit-ResNet-56 for CIFAR."""
    return _create_dit_resnet_cifar('dit_resnet56', pretrained, **dict(dict(stage_depth=9), **kwargs))


@register_model
def dit_resnet110(pretrained: bool = False, **kwargs) -> DitResNetCifar:
    """The paper's Dit-ResNet-110 for CIFAR."""
    return _create_dit_resnet_cifar('dit_resnet110', pretrained, **dict(dict(stage_depth=18), **kwargs))
