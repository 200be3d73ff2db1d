"""Starting a Dit-CNN from the weights of its base network.

A Dit-CNN of the ImageNet families is a timm network plus quadratic terms that start at zero. Each pretrained tag of
the base network therefore gives the Dit-CNN a tag `<base tag>_init`: the base network's weights, from timm's own Hub
repository, and zero quadratic terms. Such a model computes exactly what its base computes until it is trained.
"""

import logging
from dataclasses import replace
from typing import Any, Dict, Type, TypeVar, cast

import torch
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from timm.models import PretrainedCfg, build_model_with_cfg, get_arch_pretrained_cfgs, resolve_pretrained_cfg
from torch import nn

from ..errors import UnavailableError
from ..layers.quadratic import ChannelQuadratic2d
from ._timm_private import SAFETENSORS

_logger = logging.getLogger(__name__)

INIT_SUFFIX = '_init'

Model = TypeVar('Model', bound=nn.Module)


def init_cfgs(bases: Dict[str, str]) -> Dict[str, PretrainedCfg]:
    """Derive the `_init` tags of Dit-CNNs from timm's registry.

    Args:
        bases: Maps a Dit architecture to the timm architecture that it extends.

    Returns:
        Maps `<dit architecture>.<base tag>_init` to a cfg, in timm's order of tags, so that the default of a Dit
        architecture is the default of its base. Everything but the source of the weights is the base tag's.
    """
    return {
        f'{name}.{cfg.tag}{INIT_SUFFIX}': replace(
            cfg,
            # The base's repository in full: timm would complete 'timm/' with the name of the Dit architecture.
            hf_hub_filename=SAFETENSORS,
            url=None,
            architecture=None,
            tag=None,
            description=f'Weights of {cfg.hf_hub_id}, quadratic terms zero. Not trained as a Dit-CNN.',
        )
        for name, base in bases.items()
        for cfg in get_arch_pretrained_cfgs(base).values()
        if cfg.hf_hub_id and cfg.tag
    }


def add_zero_quadratics(state_dict: Dict[str, torch.Tensor], model: nn.Module) -> Dict[str, torch.Tensor]:
    """Complete the weights of a base network with zeros for the quadratic terms, where an `_init` tag asks for it.

    Anything else is returned unchanged, and the strict load checks it: weights of another tag, of a model folder
    or a Hub repository of its own, and weights that hold some of the quadratic terms.

    Args:
        state_dict: Weights as loaded.
        model: The model that they are for; its `pretrained_cfg` names the tag.

    Returns:
        The weights, completed.
    """
    cfg = cast(Dict[str, Any], model.pretrained_cfg)
    from_base = (cfg.get('tag') or '').endswith(INIT_SUFFIX) and not cfg.get('source')
    missing = {
        f'{name}.weight': torch.zeros_like(module.weight, device='cpu')
        for name, module in model.named_modules() if isinstance(module, ChannelQuadratic2d)
    }
    if not from_base or any(key in state_dict for key in missing):
        return state_dict
    _logger.info(
        f"{cfg['architecture']}.{cfg['tag']}: loaded the weights of its base network, {cfg.get('hf_hub_id')}; the "
        f"quadratic terms ({', '.join(missing)}) are zero. Outputs are those of the base network until the model "
        f"is trained; these are not Dit-trained weights."
    )
    return {**state_dict, **missing}


def build_dit_model(model_cls: Type[Model], variant: str, pretrained: bool, **kwargs: Any) -> Model:
    """timm's `build_model_with_cfg`, with an error that says what to do when weights are not available.

    Raises:
        OSError: The pretrained weights are neither cached nor to be downloaded, or a local file is missing.
    """
    try:
        return build_model_with_cfg(model_cls, variant, pretrained, **kwargs)
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        if not pretrained:
            raise
        cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay'))
        name = f'{variant}.{cfg.tag}' if cfg.tag else variant
        if cfg.file:
            message = f'Cannot load weights for {name} from the file {cfg.file!r} ({str(error) or "no such file"}).'
        else:
            of_base = ' of the base network' if (cfg.tag or '').endswith(INIT_SUFFIX) else ''
            message = (
                f'Cannot get the weights of {name} from the Hugging Face Hub repository {cfg.hf_hub_id!r}, file '
                f'{cfg.hf_hub_filename or "model.safetensors"!r} ({type(error).__name__}). Either connect to the Hub '
                f'once, after which the cached file is used offline too (HF_HUB_OFFLINE=1 skips the attempt to '
                f'connect); or load a file that you have{of_base}: create_model({name!r}, pretrained=True, '
                f"pretrained_cfg_overlay=dict(file='/path/to/model.safetensors')); or pass pretrained=False for "
                f'random weights (--no-pretrained of dit-train).'
            )
        raise UnavailableError(message) from error
