"""The network that the options name."""

import inspect
import re
from typing import Any, Dict, Tuple, cast

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.models import get_pretrained_cfg_value

from ..config.parts import NetworkConfig
from ..config.training import TrainingConfig
from ..data.inputs import input_arguments
from ..errors import DamagedFileError, InvalidInputError, UnavailableError, UserError
from ..models.network import Network
from ..pretrained.hub_errors import remedy
from ..pretrained.sources import is_source, read_source
from ..printing import near_names
from . import variants

_OF_PYTHON = {'self', 'args', 'kwargs'}


def check_model(args: NetworkConfig) -> None:
    """Refuse a network that there is not, or `--model-kwargs` that are not its, before any data are read.

    Raises:
        UserError: See `build_model`.
    """
    name, fixed = _found(args)
    if not args.model_kwargs:
        return
    if 'num_classes' in args.model_kwargs:
        raise InvalidInputError('--model-kwargs num_classes: --num-classes says it.')
    try:
        with torch.device('meta'):
            _created(name, args, False, input_arguments(vars(args), fixed))
    except (RuntimeError, NotImplementedError):
        # Not every network of timm can be made without memory; it is made later.
        pass


def build_model(args: NetworkConfig, **kwargs: Any) -> Network:
    """Create the network on its device and in its memory format.

    Args:
        args: Options.
        **kwargs: More arguments of `timm.create_model`; `--model-kwargs` wins.

    Raises:
        InvalidInputError: timm knows no such model; near names are listed. Or `--variant` is not one of this network,
            or there is no such device, or it has no kernels for the precision.
        DamagedFileError: The weights of a folder or repository do not fit its network.
    """
    name, fixed = _found(args)
    kwargs.update(input_arguments(vars(args), fixed))
    try:
        model = _created(name, args, args.pretrained, {**kwargs, 'num_classes': args.num_classes})
    except (RuntimeError, FileNotFoundError) as error:
        # The word of timm and torch for weights that are missing, cut short, or of another network.
        if not (args.pretrained and is_source(name)):
            raise
        raise DamagedFileError(f'{name}: its weights cannot be loaded: {str(error).strip()}') from error
    variants.apply(model, args.variant)
    _check_device(args.device)
    _check_precision(args)
    model.to(args.device)
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def _found(args: NetworkConfig) -> Tuple[str, bool]:
    """The name that timm takes for the network, and whether it is made for one image size."""
    name = args.model
    if args.pretrained and isinstance(args, TrainingConfig):
        name = args.pretrained_from or name
    if is_source(name):
        source = read_source(name)
        if args.model not in (name, source.architecture):
            raise InvalidInputError(f'{name} is a {source.architecture}, and the network to train a {args.model}.')
        return name, source.cfg.get('fixed_input_size', False)
    if not timm.is_model(name):
        raise InvalidInputError(f'--model {name} is not known to timm. {near_names(name, timm.list_models())}')
    try:
        return name, bool(get_pretrained_cfg_value(name, 'fixed_input_size'))
    except RuntimeError as error:
        # timm's word for a tag that the network does not have.
        raise InvalidInputError(
            f'--model {name}: there are no such weights of it. {near_names(name, timm.list_pretrained())}'
        ) from error


def _created(name: str, args: NetworkConfig, pretrained: bool, kwargs: Dict[str, Any]) -> Network:
    try:
        return cast(Network, timm.create_model(name, pretrained=pretrained, **kwargs))
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in args.model_kwargs:
            raise
        with torch.device('meta'):
            own = timm.create_model(name)
        known = {key for kind in type(own).__mro__ for key in inspect.signature(kind.__init__).parameters}
        raise InvalidInputError(
            f'--model-kwargs {unknown[1]}: {args.model} has no such argument. '
            f'{near_names(unknown[1], known - _OF_PYTHON)}'
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = remedy(error) or 'They are not in the cache, and the Hub cannot be reached: connect once.'
        raise UnavailableError(f'The weights of {name} cannot be had. {reason}') from error
    except (ValueError, AssertionError) as error:
        if not args.model_kwargs or isinstance(error, UserError):
            raise
        words = ' '.join(f'{key}={value}' for key, value in args.model_kwargs.items())
        raise InvalidInputError(f'--model-kwargs {words}: {args.model} refuses them: {error}') from error


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch's words for a device that is not there, or that it was not built for.
        raise InvalidInputError(f'--device {device} cannot be used: {str(error).strip().splitlines()[0]}') from error


def has_bfloat16_kernels() -> bool:
    """Whether torch has bfloat16 kernels for this CPU: on x86 from AVX-512 on, be it without units for bfloat16."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _check_precision(args: NetworkConfig) -> None:
    on_cpu = torch.device(args.device).type == 'cpu'
    if args.amp and args.amp_dtype == 'bfloat16' and on_cpu and not has_bfloat16_kernels():
        raise InvalidInputError(
            '--amp multiplies in bfloat16, for which torch has no kernels on this CPU (on x86 they need AVX-512): it '
            'would take many times as long as float32. Leave --amp out, or say --no-amp where a recipe or a run has it.'
        )
