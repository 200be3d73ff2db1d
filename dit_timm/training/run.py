"""What a training run is made of: its data, its network, its steps, and where it stands."""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union, cast

import torch
from torch import nn

from ..config.parts import is_stream
from ..config.training import TrainingConfig
from ..data.dataset import AnyDataset, readable
from ..data.loaders import Batches, eval_loader, train_loader
from ..data.resident import ResidentSplits, ResidentTrainBatches
from ..data.sampler import EpochBatches
from ..data.splits import check_classes, data_config, evaluated_name, hold_out, open_split
from ..data.streams import StreamBatches, check_options, size_of
from ..errors import InvalidInputError
from ..models.network import Network
from .captured import create_steps, why_uncaptured
from .logs import Logs
from .model import build_model, check_model
from .optim import freeze_all_but, is_quadratic
from .process_group import ProcessGroup
from .steps import Steps

# Share of the images from which it is worth saying that they are left out.
_MANY = 0.1


class Best(NamedTuple):
    """The epoch that is kept, and its top-1 on the split that chooses."""
    epoch: int
    top1: float


@dataclass
class State:
    """Where a run stands, beside its weights and what `Steps` has.

    Attributes:
        epoch: Epochs that are done.
        batch: Batches of the next epoch that are done.
        loss_sum: The sum of their losses.
        seconds: What they took.
        history: A row for each epoch that is done.
        best: The epoch that is kept; None before the first is done.
    """
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.
    seconds: float = 0.
    history: List[Dict[str, Any]] = field(default_factory=list)
    best: Optional[Best] = None


@dataclass
class Data:
    """The images of a run.

    Attributes:
        train: The training split.
        train_indices: The images of it that are trained on; None for all.
        val: What is evaluated after each epoch; None for nothing.
        val_indices: The images of it; None for all.
        val_name: What it is called in results.
        test: What is evaluated at the end; None for nothing.
        skipped: How many images cannot be read and are left out.
    """
    train: AnyDataset
    train_indices: Optional[List[int]]
    val: Optional[AnyDataset]
    val_indices: Optional[List[int]]
    val_name: str
    test: Optional[AnyDataset]
    skipped: int = 0

    @property
    def val_size(self) -> int:
        """Images that are evaluated after each epoch."""
        if self.val is None:
            return 0
        return size_of(self.val) if self.val_indices is None else len(self.val_indices)


@dataclass
class Run:
    """Everything that a run is made of.

    Attributes:
        args: Options.
        processes: The processes that train together.
        show: Whether there are progress bars and a line for each epoch.
        data: The images.
        model: The network as it is saved.
        trained: How many of its parameters are trained.
        config: What it is shown of an image, see `data_config`.
        train_batches: Batches to train on.
        sampler: What says where they begin.
        val_batches: Batches of what is evaluated after each epoch, if anything is.
        test_batches: Batches of what is evaluated at the end, if anything is.
        data_digest: SHA-256 of the training images; None where they are not known before they are read.
        uncaptured: Why its steps are not captured; None where they can be.
        steps: What trains the network.
        epochs: The epochs that the schedule has.
        state: Where it stands.
        logs: Where its numbers go, of the process that writes, once it trains.
        saved_at: When its last checkpoint was written, by the monotonic clock.
    """
    args: TrainingConfig
    processes: ProcessGroup
    show: bool
    data: Data
    model: nn.Module
    trained: int
    config: Dict[str, Any]
    train_batches: Batches
    sampler: Union[EpochBatches, StreamBatches]
    val_batches: Optional[Batches]
    test_batches: Optional[Batches]
    data_digest: Optional[str]
    uncaptured: Optional[str]
    steps: Steps
    epochs: int
    state: State = field(default_factory=State)
    logs: Optional[Logs] = None
    saved_at: float = -math.inf

    @property
    def evaluated(self) -> nn.Module:
        """The network whose weights are evaluated and shipped."""
        return self.model if self.steps.ema is None else self.steps.ema.module


def create_run(
        args: TrainingConfig, processes: ProcessGroup, resident: Optional[ResidentSplits] = None, show: bool = True,
) -> Run:
    """Build all that a run is made of.

    Args:
        args: Options; `num_classes` becomes the network's.
        processes: The processes that train together.
        resident: Images on the device that are there already, for `--data-on-device`.
        show: Whether there are progress bars and a line for each epoch.

    Raises:
        InvalidInputError: Options or data do not fit together.
    """
    resident = resident or ResidentSplits(args.device, args.data_cache) if args.data_on_device else None
    check_model(args)
    data = open_data(args)
    model, trained = build_network(args)
    args.num_classes = model.num_classes
    config = data_config(args, model)
    place = processes.rank, processes.world_size, resident
    train_batches, sampler = train_loader(args, data.train, config, data.train_indices, *place)
    val_batches = test_batches = None
    if data.val is not None:
        val_split = args.train_split if args.val_fraction else args.val_split
        val_batches = eval_loader(args, data.val, config, data.val_indices, *place, val_split)
    if data.test is not None and args.test_split:
        # Now, so that images that cannot be read are known before all is trained.
        test_batches = eval_loader(args, data.test, config, None, *place, args.test_split)
    uncaptured = why_uncaptured(args, processes.world_size)
    if args.sync_bn:
        # It replaces the norms in the network; torch's annotation has a norm.
        model = cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    # Of a module it is a module; torch's annotation has any callable.
    compiled = cast(nn.Module, torch.compile(model)) if args.torchcompile else model
    wrapped = processes.parallel(compiled)
    steps, epochs = create_steps(args, wrapped, model, sampler.batches, processes.rank, uncaptured)
    digest = train_batches.images.digest if isinstance(train_batches, ResidentTrainBatches) else None
    return Run(
        args, processes, show and processes.is_primary, data, model, trained, config, train_batches, sampler,
        val_batches, test_batches, digest, uncaptured, steps, epochs,
    )


def open_data(args: TrainingConfig) -> Data:
    """Open the splits that the options name.

    Args:
        args: Options; `num_classes` becomes that of the data where it is not set.

    Raises:
        InvalidInputError: Options or data do not fit together.
    """
    if is_stream(args.dataset):
        check_options(args)
    train = open_split(args, args.train_split, is_training=True)
    if args.val_fraction:
        train_indices, val_indices = hold_out(train, args.val_fraction)
        val = open_split(args, args.train_split)
    else:
        train_indices = val_indices = None
        val = open_split(args, args.val_split) if args.val_split else None
    args.num_classes = check_classes(train, val, args.num_classes)
    skipped = 0
    if args.skip_bad_images:
        train_indices, bad = readable(train, train_indices, args.workers)
        skipped += len(bad)
        if val is not None:
            val_indices, bad = readable(val, val_indices, args.workers)
            skipped += len(bad)
    test = open_split(args, args.test_split) if args.test_split else None
    if test is not None:
        check_classes(train, test, args.num_classes)
    return Data(train, train_indices, val, val_indices, evaluated_name(args), test, skipped)


def build_network(args: TrainingConfig) -> Tuple[Network, int]:
    """Build the network that is trained; returns it and how many of its parameters are.

    Raises:
        InvalidInputError: See `build_model` and `freeze_all_but`; or it cannot do with `--grad-checkpointing`.
    """
    model = build_model(args, drop_rate=args.drop, drop_path_rate=args.drop_path)
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except AssertionError as error:
            raise InvalidInputError(f'--grad-checkpointing: {args.model} cannot do that: {error}') from error
    if args.train_only:
        return model, freeze_all_but(model, args.train_only)
    return model, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def describe(run: Run) -> str:
    """What will be done, in a few lines."""
    args = run.args
    source = '' if args.data_dir else ' (handwritten digits, for want of --data-dir)'
    total = sum(parameter.numel() for parameter in run.model.parameters())
    part = f' ({run.trained:,} trained)' if run.trained != total else ''
    lines = [
        f'{args.model}: {total:,} parameters{part}, {args.num_classes} classes; '
        f'{run.sampler.size:,} training and {run.data.val_size:,} evaluation images{source}; '
        f'{args.device}{run.processes.describe()}',
    ]
    if args.skip_bad_images:
        lines.append(f'images that cannot be read and are left out: {run.data.skipped}')
    if args.warmup_epochs >= run.epochs:
        lines.append(
            f'The learning rate warms up all the time: --warmup-epochs is {args.warmup_epochs}, '
            f'--epochs {run.epochs}. Lower the one or raise the other.'
        )
    if args.quadratic_lr_scale != 1 and not any(is_quadratic(name) for name, _ in run.model.named_parameters()):
        lines.append('--quadratic-lr-scale changes nothing: the network has no quadratic term.')
    if args.pretrained_from and not args.pretrained and args.resume is None:
        lines.append(f'The weights of {args.pretrained_from} are not used: --pretrained begins with them.')
    if run.uncaptured is not None and args.device.startswith('cuda'):
        lines.append(f'Steps are not captured as a CUDA graph: {run.uncaptured}')
    together = args.batch_size * run.processes.world_size
    left_out = run.sampler.size - run.sampler.batches * together
    if left_out > _MANY * run.sampler.size:
        lines.append(
            f'{left_out:,} of the training images, other ones in each epoch, fill no batch of {together} and are '
            f'left out. A smaller --batch-size leaves out fewer.'
        )
    return '\n'.join(lines)
