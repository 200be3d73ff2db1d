"""The options of training, and how those of a run come together: defaults, its folder, a recipe, the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence

import timm

from ..errors import InvalidInputError, UserError
from ..files import default_cache
from ..pretrained.sources import folder_of, is_source, read_source
from .choices import optimizer, policy, train_interpolation
from .options import Options, Parser, facts_of, option
from .parts import FROZEN, PLAIN, TRANSPOSED, EvaluationConfig, is_stream, requested_input

_DIGITS_RECIPE = Path(__file__).with_name('digits.yaml')
# What a pretrained cfg says of images beside their size, in options of that name.
_OF_IMAGES = ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')


@dataclass(kw_only=True)
class OptimisationConfig(Options):
    """What is learnt from which images, and how."""
    title = 'optimisation'

    train_split: str = option('train', metavar='NAME')
    pretrained_from: Optional[str] = option(
        None, 'where --pretrained has the weights from, local-dir:FOLDER or hf-hub:OWNER/NAME, if not from where timm '
              'has them; --model SOURCE sets it too', metavar='SOURCE',
    )
    val_fraction: float = option(
        0., 'hold out this share of the training images, evaluate on it after each epoch in place of --val-split, and '
            'keep the best epoch by it (default: the last epoch is kept)', metavar='SHARE', low=0, below=1,
    )
    test_split: Optional[str] = option(
        None, 'split to evaluate on once, at the end, with the weights that are kept', metavar='NAME', may_change=True,
    )
    epochs: int = option(300, metavar='N', low=1)
    opt: str = option('sgd', 'one of timm\'s optimizers', check=optimizer)
    lr: float = option(0.1)
    momentum: float = option(0.9)
    weight_decay: float = option(2e-5)
    opt_eps: Optional[float] = option(None)
    opt_betas: Optional[List[float]] = option(None)
    layer_decay: Optional[float] = option(None)
    quadratic_lr_scale: float = option(
        1., 'learning rate of the quadratic terms and the norms in front of them, as a factor of --lr',
        metavar='FACTOR',
    )
    decay_norms: bool = option(False, 'decay biases and the weights of norms too')
    train_only: Optional[List[str]] = option(
        None, 'freeze all but the parameters whose name has one of these in it; "quadratic": the quadratic terms',
        metavar='PATTERN',
    )
    grad_accum_steps: int = option(1, metavar='N', low=1)
    clip_grad: Optional[float] = option(None, metavar='NORM')
    clip_mode: str = option('norm', choices=('norm', 'value', 'agc'))
    sched: str = option(
        'cosine', choices=('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant'),
    )
    sched_on_updates: bool = option(False)
    warmup_epochs: int = option(5, metavar='N', low=0)
    warmup_lr: float = option(1e-5)
    min_lr: float = option(0.)
    decay_milestones: List[int] = option([90, 180, 270])
    decay_rate: float = option(0.1)
    decay_epochs: Optional[float] = option(None, metavar='N')
    cooldown_epochs: int = option(0, metavar='N', low=0)
    warmup_prefix: bool = option(False)
    bce_loss: bool = option(False)
    bce_sum: bool = option(False)
    bce_target_thresh: Optional[float] = option(None, metavar='T')
    model_ema: bool = option(False)
    model_ema_decay: float = option(0.9998, low=0, high=1)
    model_ema_warmup: bool = option(False)
    drop: float = option(0., low=0, below=1)
    drop_path: Optional[float] = option(None, low=0, below=1)
    grad_checkpointing: bool = option(False)
    cuda_graph: Optional[bool] = option(
        None, 'capture a whole step and replay it, so that the GPU does not wait for the host (default: on a GPU, '
              'where the options allow it)', may_change=True,
    )
    torchcompile: bool = option(False)
    sync_bn: bool = option(False, 'batch norms over all processes together (GPUs)')
    seed: int = option(42, is_experiment=False)


@dataclass(kw_only=True)
class LoadingConfig(Options):
    """Where images are kept."""
    title = 'loading'

    data_on_device: bool = option(
        False, 'decode the images once, keep them in the memory of the device, and augment them there: for data that '
               'fit',
    )
    data_cache: Path = option(
        default_cache, 'where --data-on-device keeps decoded images for the next time', metavar='DIR', may_change=True,
    )
    cache_images: bool = option(
        False, 'keep the training images in memory once they are decoded, in each of the --workers: for small images, '
               'which a GPU would else wait for', may_change=True,
    )


@dataclass(kw_only=True)
class AugmentationConfig(Options):
    """What becomes of an image before a network is trained on it."""
    title = 'augmentation'

    no_aug: bool = option(False)
    train_crop_mode: Optional[str] = option(None, choices=('rrc', 'rkrc', 'rkrr'))
    crop_padding: int = option(
        0, 'first crop at random from the image padded with black on all sides; the image has the input size',
        metavar='PIXELS', low=0,
    )
    scale: List[float] = option([0.08, 1.0], nargs=2, low=0)
    ratio: List[float] = option([3 / 4, 4 / 3], nargs=2, low=0)
    hflip: float = option(0.5, low=0, high=1)
    vflip: float = option(0., low=0, high=1)
    color_jitter: float = option(0.4, low=0)
    aa: Optional[str] = option(None, 'AutoAugment, RandAugment or AugMix policy', metavar='POLICY', check=policy)
    reprob: float = option(0., 'probability of random erasing', low=0, high=1)
    remode: str = option('pixel', choices=('pixel', 'rand', 'const'))
    recount: int = option(1, low=1)
    mixup: float = option(0., metavar='ALPHA', low=0)
    cutmix: float = option(0., metavar='ALPHA', low=0)
    mixup_prob: float = option(1., low=0, high=1)
    mixup_switch_prob: float = option(0.5, low=0, high=1)
    smoothing: float = option(0.1, 'label smoothing', low=0, below=1)
    train_interpolation: str = option('random', check=train_interpolation)


@dataclass(kw_only=True)
class OutputConfig(Options):
    """What a run leaves behind."""
    title = 'output'

    output: str = option('output/train', metavar='DIR', may_change=True)
    experiment: str = option('', 'subfolder (default: the time and the model)', metavar='NAME', may_change=True)
    resume: Optional[str] = option(
        None, 'go on with the run in this folder, to the end that it would have had', metavar='RUN', in_recipe=False,
        may_change=True,
    )
    checkpoint_interval: Optional[int] = option(
        None, 'save a checkpoint after every N updates too (default: after each epoch)', metavar='N', low=1,
        may_change=True,
    )
    checkpoint_seconds: float = option(
        0., 'leave out the checkpoint of an epoch while the last one is younger than this', metavar='S', low=0,
        may_change=True,
    )
    log_tensorboard: bool = option(False, may_change=True)
    log_wandb: bool = option(False, may_change=True)
    dry_run: bool = option(False, 'say what would be done, and do nothing', in_recipe=False, may_change=True)


@dataclass(kw_only=True)
class TrainingConfig(EvaluationConfig, OptimisationConfig, LoadingConfig, AugmentationConfig, OutputConfig):
    """All options of a run."""

    config: Optional[Path] = option(
        None, 'YAML file that sets any option', short='-c', metavar='FILE', in_recipe=False, may_change=True,
    )


def parse_training(
        argv: Optional[Sequence[str]] = None,
        description: Optional[str] = None,
        options: Optional[Mapping[str, Any]] = None,
        source: str = '',
) -> TrainingConfig:
    """Parse a command line: the options of `--resume`, above them those of `--config`, above them its own.

    Without any that names data or a recipe, they are the recipe for the digits. The process ends, as after any wrong
    command line, if an option is wrong, or changes a run that resumes.

    Args:
        argv: Command line; that of the process if None.
        description: What the command does.
        options: More of them, above those of `--config`.
        source: What sets these, for messages.
    """
    parser = Parser(TrainingConfig, description)
    given = parser.given(argv)
    run = None
    if 'resume' in given:
        path = Path(given['resume'], 'args.yaml')
        if not path.is_file():
            parser.error(f'--resume {path.parent} is no folder of a run: it has no {path.name}.')
        run = parser.checked(parser.read(path), str(path), list(parser.options))
    recipe = given.get('config')
    if recipe is None and run is None and not given.get('data_dir') and not given.get('dataset'):
        recipe = _DIGITS_RECIPE
    in_recipe = parser.checked(parser.read(recipe), f'--config {recipe}') if recipe is not None else {}
    args = TrainingConfig(
        **{**(run or {}), **in_recipe, **parser.checked(options or {}, source), **given, 'config': recipe},
    )
    _check(parser, args)
    try:
        _resolve_source(args)
    except UserError as error:
        parser.error(str(error))
    _resolve_variant(args)
    # So that a run can be resumed, and evaluated, from any folder.
    if args.data_dir and '://' not in args.data_dir and '::' not in args.data_dir:
        args.data_dir = str(Path(args.data_dir).absolute())
    if args.class_map and Path(args.class_map).is_file():
        args.class_map = str(Path(args.class_map).absolute())
    if run is not None:
        _check_unchanged(parser, args, run)
    return args


def _check(parser: Parser, args: TrainingConfig) -> None:
    if (args.mixup > 0 or args.cutmix > 0) and args.batch_size % 2:
        parser.error(f'--mixup and --cutmix pair images: --batch-size must be even; got {args.batch_size}.')
    if args.variant == FROZEN and args.train_only:
        parser.error(f'--variant {FROZEN} says what is not trained, and --train-only what is: leave one of them out.')
    if args.quadratic_lr_scale <= 0:
        parser.error(f'--quadratic-lr-scale must be positive; got {args.quadratic_lr_scale}. To freeze the quadratic '
                     f'terms, train only others with --train-only.')


def _check_unchanged(parser: Parser, args: TrainingConfig, run: Mapping[str, Any]) -> None:
    """Refuse options that would give a run other weights."""
    # Shards of a stream are dealt out to the processes that load them.
    fixed = ('workers',) if is_stream(args.dataset) else ()
    changed = [
        f'{parser.options[name].flag} is {run[name]}, not {getattr(args, name)}'
        for name, facts in facts_of(TrainingConfig).items()
        if name in run and (name in fixed or not facts.may_change) and getattr(args, name) != run[name]
    ]
    if changed:
        parser.error(f'--resume keeps the options of the run: {", ".join(changed)}.')


def _resolve_source(args: TrainingConfig) -> None:
    """Express `--model local-dir:...` or `hf-hub:...` by other options, of which `--pretrained-from` is one.

    They say all that the network of a run needs, whatever becomes of the folder or repository.

    Raises:
        UserError: See `read_source`.
    """
    if not is_source(args.model):
        return
    if args.pretrained_from not in (None, args.model):
        raise InvalidInputError(
            f'--model {args.model} and --pretrained-from {args.pretrained_from}: leave one of them out.'
        )
    folder = folder_of(args.model)
    args.pretrained_from = args.model if folder is None else f'local-dir:{folder.absolute()}'
    source = read_source(args.pretrained_from)
    args.model = source.architecture
    args.model_kwargs = {**source.model_args, **args.model_kwargs}
    own = source.cfg.get('input_size', (3, 224, 224))
    channels, size = requested_input(vars(args))
    channels = channels or args.model_kwargs.get('in_chans', own[0])
    args.input_size = [channels, *(size or own[1:])]
    for name in _OF_IMAGES:
        value = source.cfg.get(name)
        if getattr(args, name) in (None, '') and value is not None:
            if isinstance(value, (tuple, list)):
                value = list(value) if len(value) == channels else [sum(value) / len(value)]
            setattr(args, name, value)


def _resolve_variant(args: TrainingConfig) -> None:
    """Express `--variant` by `--model` and `--model-kwargs`, as far as these can.

    Whatever reads the options of a run then builds its network without knowing of variants; what is left to do is
    that of `variants.apply`.
    """
    if args.variant == PLAIN:
        base = args.model.replace('dit_', '')
        if timm.is_model(base):
            args.model = base
        else:
            # The CIFAR networks, which timm has not.
            args.model_kwargs = {**args.model_kwargs, 'quadratic': False}
    elif args.variant == TRANSPOSED:
        args.model_kwargs = {**args.model_kwargs, 'transposed_quadratic': True}


def dit_network(name: str) -> str:
    """The Dit network that a network of timm is the plain twin of; any other network's own name."""
    return next((dit for dit in timm.list_models('*dit_*') if dit.replace('dit_', '') == name), name)
