"""Trained networks: from the folder or file of a run, of ours or of timm's, or pretrained."""

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import timm
import torch
import yaml
from safetensors import SafetensorError, safe_open
from timm.models import get_pretrained_cfg_value

from ..config.options import Parser
from ..config.parts import EvaluatedConfig, TrainedConfig
from ..data.inputs import OPTIONS
from ..errors import DamagedFileError, InvalidInputError, MissingFileError
from ..models.network import Network
from ..pretrained.weight_files import load_weights, read_weights
from .logs import read_csv
from .model import build_model
from .timm_checkpoint import options_of, read_checkpoint, weights_of

CLASSES = 'classes'
# Of a folder, the first of them that is there: ours, and timm's.
_FILES = ('model.safetensors', 'model_best.pth.tar', 'last.pth.tar')
# What a run has in its folder at its end.
_OF_RUN = ('args.yaml', 'summary.csv', 'results.csv', 'environment.csv', 'model.safetensors')


def parse_with_run(parser: Parser, given: Mapping[str, Any]) -> Any:
    """The options of a command line, and below them those of the run that wrote `--checkpoint`.

    The process ends, as after any wrong command line, where weights are neither named nor pretrained.

    Args:
        parser: A parser of a `TrainedConfig`.
        given: What the command line says; of one network.

    Returns:
        The options, an instance of the parser's class, with the file of weights as `checkpoint`.
    """
    checkpoint: Optional[Path] = given.get('checkpoint')
    if checkpoint is not None and checkpoint.is_dir():
        folder, checkpoint = checkpoint, next(filter(Path.is_file, map(checkpoint.joinpath, _FILES)), None)
        if checkpoint is None:
            parser.error(f'--checkpoint {folder} holds no weights: none of {", ".join(_FILES)}.')
    elif checkpoint is not None and not checkpoint.is_file():
        parser.error(f'--checkpoint {checkpoint} is not a file.')
    options = _of_run(parser, checkpoint) if checkpoint is not None else {}
    if 'val_split' in given:
        # Where a run held images out, too.
        options['val_fraction'] = 0.
    options = {**options, **given, 'checkpoint': checkpoint}
    if checkpoint is None and not options.get('pretrained'):
        parser.error('name the weights: --checkpoint FILE or --pretrained.')
    if checkpoint is not None and 'model' not in options:
        parser.error(f'--checkpoint {checkpoint} does not say which network its weights are of: add --model NAME.')
    if options.get('use_ema') and (checkpoint is None or _is_safetensors(checkpoint)):
        parser.error(f'--use-ema is of checkpoints of timm\'s train.py; {checkpoint or "--pretrained"} has one set of '
                     f'weights.')
    return parser.config(**options)


def config_of_run(run: Path, **changes: Any) -> EvaluatedConfig:
    """The options with which the weights that a run kept are evaluated, on the images of its last results.

    Args:
        run: Its folder.
        **changes: Options with another value.
    """
    return parse_with_run(Parser(EvaluatedConfig), {'checkpoint': run, **changes})


def _is_safetensors(checkpoint: Path) -> bool:
    return checkpoint.suffix == '.safetensors'


def _of_run(parser: Parser, checkpoint: Path) -> Dict[str, Any]:
    """Options that a file of weights, or the args.yaml beside it, says."""
    source = checkpoint.with_name('args.yaml')
    try:
        if source.is_file():
            run = parser.read(source)
        else:
            source, run = checkpoint, _said(checkpoint)
    except (DamagedFileError, InvalidInputError):
        # `load_trained` reports what is wrong with it.
        return {'model': parser.options['model'].default}
    options = dict(run)
    # The weights come from the checkpoint, not from where the run started.
    options.pop('pretrained', None)
    if str(run.get('device')).startswith('cuda') and not torch.cuda.is_available():
        # That of the machine of the run.
        options.pop('device')
    if 'data' in run and not run.get('data_dir'):
        # How timm calls it where it is named without an option.
        options['data_dir'] = run['data']
    if run.get('test_split'):
        # That the last results are of.
        options.update(val_split=run['test_split'], val_fraction=0.)
    known = list(parser.options)
    return parser.checked({key: value for key, value in options.items() if key in known}, str(source), known)


def _said(checkpoint: Path) -> Dict[str, Any]:
    """Options that a file of weights has, those of its network at least."""
    if not _is_safetensors(checkpoint):
        return options_of(read_checkpoint(checkpoint))
    metadata = _metadata(checkpoint)
    return {**json.loads(metadata.get(OPTIONS, '{}')), **{key: metadata[key] for key in ('model',) if key in metadata}}


def _metadata(checkpoint: Path) -> Dict[str, str]:
    try:
        with safe_open(checkpoint, framework='pt') as file:
            return file.metadata() or {}
    except (SafetensorError, ValueError) as error:
        raise DamagedFileError(f'{checkpoint} is no whole safetensors file: {error}') from error


def check_ended(run: Path) -> None:
    """Refuse a folder that is not of a run that has ended.

    Raises:
        MissingFileError: It names the first file that is missing.
    """
    for name in _OF_RUN:
        if not (run / name).is_file():
            raise MissingFileError(
                f'{run} is no folder of a run that has ended: it has no {name}. scripts/train.py writes such folders.'
            )


def result_on_test(run: Path) -> Dict[str, str]:
    """The row of a run's results.csv that is of its test split.

    Raises:
        InvalidInputError: There is none.
    """
    split = yaml.safe_load((run / 'args.yaml').read_text())['test_split']
    tests = [row for row in read_csv(run / 'results.csv') if row['split'] == split]
    if not tests:
        raise InvalidInputError(f'{run} has no result on a test split; train with --test-split.')
    # The first may be of the same split, looked at after every epoch.
    return tests[-1]


def load_trained(args: TrainedConfig) -> Network:
    """Build the network that the options name, with its trained weights.

    Raises:
        DamagedFileError: The weights are damaged, or of another network.
        InvalidInputError: They cannot be had without executing code, or there are none of the kind that is asked for.
    """
    if args.checkpoint is None:
        return build_model(args).eval()
    if _is_safetensors(args.checkpoint):
        tensors = read_weights(args.checkpoint)
    else:
        tensors = weights_of(read_checkpoint(args.checkpoint), args.use_ema, args.checkpoint)
    if args.num_classes is None:
        args.num_classes = _classes_in(tensors, args.model)
    model = build_model(args)
    load_weights(model, tensors, args.checkpoint)
    return model.eval()


def _classes_in(tensors: Mapping[str, torch.Tensor], model: str) -> Optional[int]:
    """How many classes weights tell apart, by the last layer; None if that is not there."""
    last = get_pretrained_cfg_value(model, 'classifier') if timm.is_model(model) else None
    names = [f'{name}.weight' for name in ([last] if isinstance(last, str) else last or ())]
    return next((len(tensors[name]) for name in names if name in tensors), None)


def classes_metadata(names: Optional[List[str]]) -> Mapping[str, str]:
    """What a file of weights says of its classes; see `classes_of`."""
    return {CLASSES: json.dumps(names)} if names else {}


def classes_of(weights: Path) -> Optional[List[str]]:
    """Names of the classes that a safetensors file says; None where it says none. See `classes_metadata`."""
    return json.loads(_metadata(weights).get(CLASSES, 'null'))


def known_classes(args: TrainedConfig, model: Network) -> Optional[List[str]]:
    """Names of the classes: those in the file of weights, or the pretrained network's; None where they do not say."""
    if args.checkpoint is not None:
        return classes_of(args.checkpoint) if _is_safetensors(args.checkpoint) else None
    # Of another number of classes, the pretrained ones are not the network's any more.
    names = model.pretrained_cfg.get('label_names')
    return list(names) if names and len(names) == model.num_classes else None


def read_classes(args: TrainedConfig, model: Network) -> Tuple[str, ...]:
    """Names of the classes, or numbers where nothing says them."""
    return tuple(known_classes(args, model) or map(str, range(model.num_classes)))
