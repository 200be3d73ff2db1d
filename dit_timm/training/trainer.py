"""A training run from its first step to its results, through any number of interruptions."""

import math
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import torch
from torch import nn
from tqdm import tqdm

from ..config.parts import is_stream
from ..config.training import TrainingConfig
from ..data.dataset import readable
from ..data.inputs import options_metadata
from ..data.loaders import Batches, eval_loader, train_loader
from ..data.resident import ResidentSplits
from ..data.splits import check_classes, class_names, data_config, held_out_name, hold_out, open_split
from ..data.streams import check_options, size_of
from ..errors import DamagedFileError, DivergedError, InvalidInputError, UnavailableError
from ..files import write_file
from ..pretrained.weight_files import load_weights, read_weights, weights_bytes
from .captured import create_steps, why_uncaptured
from .checkpoint import describe, list_checkpoints, load_checkpoint, save_checkpoint
from .engine import evaluate, lacks_bfloat16
from .environment import note_environment
from .interrupt import Interrupt, Interrupted, StopRequest
from .logs import Logs, write_csv
from .model import build_model, check_model
from .optim import freeze_all_but, is_quadratic, set_training
from .processes import Processes
from .trained import classes_metadata

# Batches between looks at the loss, which wait for the device.
_LOOK_EVERY = 50
# Share of the images from which it is worth saying that they are left out.
_MANY = 0.1


class _Best(NamedTuple):
    """The epoch that is kept, and its top-1 on the split that chooses."""
    epoch: int
    top1: float


class Trainer:
    """Everything that a run is made of.

    Args:
        args: Options.
        processes: The processes that train together.
        resident: Images on the device that are there already, for `--data-on-device`.
        show: Whether there are progress bars and a line for each epoch.

    Raises:
        InvalidInputError: Options or data do not fit together.
    """

    def __init__(
            self, args: TrainingConfig, processes: Processes, resident: Optional[ResidentSplits] = None,
            show: bool = True,
    ) -> None:
        self.args, self.processes = args, processes
        self.show = show and processes.is_primary
        self.resident = resident or ResidentSplits(args.device, args.data_cache) if args.data_on_device else None
        check_model(args)
        self._open_data()
        self.model = build_model(args, drop_rate=args.drop, drop_path_rate=args.drop_path)
        if args.grad_checkpointing:
            try:
                self.model.set_grad_checkpointing()
            except AssertionError as error:
                raise InvalidInputError(f'--grad-checkpointing: {args.model} cannot do that: {error}') from error
        args.num_classes = self.model.num_classes
        self.trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        if args.train_only:
            self.trained = freeze_all_but(self.model, args.train_only)
        config = data_config(args, self.model)
        self.train_batches, self.sampler = train_loader(
            args, self.train_set, config, self.train_indices, processes.rank, processes.world_size, self.resident,
        )
        self.config = config
        self.val_batches = None
        if self.val_set is not None:
            val_split = args.train_split if args.val_fraction else args.val_split
            self.val_batches = self._eval_batches(self.val_set, val_split, self.val_indices)
        # Now, so that images that cannot be read are known before all is trained.
        self.test_batches = None
        if self.test_set is not None:
            self.test_batches = self._eval_batches(self.test_set, args.test_split)
        self.uncaptured = why_uncaptured(args, processes.world_size)
        self.steps, self.epochs = create_steps(
            args, self._wrapped(), self.model, self.sampler.batches, processes.rank, self.uncaptured,
        )
        self.epoch = self.batch = 0
        self.loss_sum = 0.
        self.seconds = 0.
        self.saved_at = -math.inf
        self.history: List[Dict[str, Any]] = []
        self.best: Optional[_Best] = None

    def _open_data(self) -> None:
        args = self.args
        if is_stream(args.dataset):
            check_options(args)
        self.train_set = open_split(args, args.train_split, is_training=True)
        self.train_indices = self.val_indices = None
        if args.val_fraction:
            self.train_indices, self.val_indices = hold_out(self.train_set, args.val_fraction)
            self.val_set = open_split(args, args.train_split)
            self.val_name = held_out_name(args.val_fraction, args.train_split)
        else:
            self.val_set = open_split(args, args.val_split) if args.val_split else None
            self.val_name = args.val_split
        args.num_classes = check_classes(self.train_set, self.val_set, args.num_classes)
        self.skipped = 0
        if args.skip_bad_images:
            self.train_indices, bad = readable(self.train_set, self.train_indices, args.workers)
            self.skipped += len(bad)
            if self.val_set is not None:
                self.val_indices, bad = readable(self.val_set, self.val_indices, args.workers)
                self.skipped += len(bad)
        self.test_set = open_split(args, args.test_split) if args.test_split else None
        if self.test_set is not None:
            check_classes(self.train_set, self.test_set, args.num_classes)

    def _eval_batches(self, dataset: Any, split: str, indices: Optional[List[int]] = None) -> Batches:
        return eval_loader(
            self.args, dataset, self.config, indices, self.processes.rank, self.processes.world_size, self.resident,
            split,
        )

    def _wrapped(self) -> nn.Module:
        model = self.model
        if self.args.sync_bn:
            model = self.model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if self.args.torchcompile:
            model = torch.compile(model)
        return self.processes.parallel(model)

    def describe(self) -> str:
        """What will be done, in a few lines."""
        args = self.args
        source = '' if args.data_dir else ' (handwritten digits, for want of --data-dir)'
        total = sum(parameter.numel() for parameter in self.model.parameters())
        part = f' ({self.trained:,} trained)' if self.trained != total else ''
        lines = [
            f'{args.model}: {total:,} parameters{part}, {args.num_classes} classes; '
            f'{self.sampler.size:,} training and {self._val_size():,} evaluation images{source}; '
            f'{args.device}{self.processes.describe()}',
        ]
        if args.skip_bad_images:
            lines.append(f'images that cannot be read and are left out: {self.skipped}')
        if args.warmup_epochs >= self.epochs:
            lines.append(
                f'The learning rate warms up all the time: --warmup-epochs is {args.warmup_epochs}, '
                f'--epochs {self.epochs}. Lower the one or raise the other.'
            )
        if args.quadratic_lr_scale != 1 and not any(is_quadratic(name) for name, _ in self.model.named_parameters()):
            lines.append('--quadratic-lr-scale changes nothing: the network has no quadratic term.')
        if args.pretrained_from and not args.pretrained and args.resume is None:
            lines.append(f'The weights of {args.pretrained_from} are not used: --pretrained begins with them.')
        if self.uncaptured is not None and args.device.startswith('cuda'):
            lines.append(f'Steps are not captured as a CUDA graph: {self.uncaptured}')
        if lacks_bfloat16(args):
            consequence = (
                'with --torchcompile, --amp is slow; leave one of them out' if args.torchcompile
                else 'values are rounded to it and multiplied in float32'
            )
            lines.append(f'torch has no bfloat16 kernels for this CPU: {consequence}.')
        together = args.batch_size * self.processes.world_size
        left_out = self.sampler.size - self.sampler.batches * together
        if left_out > _MANY * self.sampler.size:
            lines.append(
                f'{left_out:,} of the training images, other ones in each epoch, fill no batch of {together} and are '
                f'left out. A smaller --batch-size leaves out fewer.'
            )
        return '\n'.join(lines)

    def restore(self, folder: Path) -> None:
        """Stand where the last checkpoint of a run stood.

        Raises:
            DamagedFileError: It is damaged, or of another network or number of processes.
        """
        checkpoint = load_checkpoint(folder)
        state = checkpoint.state
        if state['world_size'] != self.processes.world_size:
            raise DamagedFileError(
                f'{checkpoint.path} is of a run of {state["world_size"]} processes; this one has '
                f'{self.processes.world_size}, and would train on other batches.'
            )
        load_weights(self.model, checkpoint.weights['model'], checkpoint.path)
        if self.steps.ema is not None:
            load_weights(self.steps.ema.module, checkpoint.weights['ema'], checkpoint.path)
        self.steps.load_state_dict(state['steps'])
        self.epoch, self.batch = state['epoch'], state['batch']
        self.loss_sum, self.seconds = state['loss_sum'], state['seconds']
        self.history = state['history']
        if self.data_digest and state.get('data') not in (None, self.data_digest):
            raise DamagedFileError(
                f'{checkpoint.path} is of a run on other images: those of {self.args.train_split!r} in '
                f'{self.args.data_dir} have changed since. Bring them back, or begin a new run.'
            )
        self.best = None if state['best'] is None else _Best(*state['best'])

    def save(self, folder: Path) -> None:
        """Write a checkpoint; the first process does it for all.

        Raises:
            OSError: It could not be written.
        """
        self.saved_at = time.monotonic()
        if not self.processes.is_primary:
            return
        weights = {'model': self.model.state_dict()}
        if self.steps.ema is not None:
            weights['ema'] = self.steps.ema.module.state_dict()
        save_checkpoint(folder, self.epoch, self.batch, weights, {
            'epoch': self.epoch, 'batch': self.batch, 'loss_sum': self.loss_sum, 'seconds': self.seconds,
            'history': self.history,
            'best': None if self.best is None else tuple(self.best), 'world_size': self.processes.world_size,
            'data': self.data_digest,
            'steps': self.steps.state_dict(),
        })

    @property
    def data_digest(self) -> Optional[str]:
        """SHA-256 of the training images; None where they are not known before they are read."""
        return self.train_batches.images.digest if self.resident is not None else None

    def _val_size(self) -> int:
        if self.val_set is None:
            return 0
        return size_of(self.val_set) if self.val_indices is None else len(self.val_indices)

    def fit(self, folder: Path) -> Dict[str, Any]:
        """Train to the end, evaluating and saving after each epoch.

        Args:
            folder: The folder of the run.

        Returns:
            The row of results of the last evaluation, on the test split if there is one; {} without any.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
            DivergedError: The loss is not finite.
            UnreadableImageError: An image cannot be read.
            OSError: A file cannot be written; the last good checkpoint is intact.
        """
        with Interrupt() as interrupt:
            for _ in self.train(folder, interrupt):
                pass
        return self.finish(folder)

    def train(self, folder: Path, request: StopRequest) -> Iterator[None]:
        """The same step by step, up to the last checkpoint, for who has other runs to look after in between.

        Args:
            folder: The folder of the run.
            request: What stops the run when its `requested` is set.

        Yields:
            After each step.
        """
        self.logs = None
        if self.processes.is_primary:
            self.logs = Logs(folder, self.args)
            note_environment(folder, self.args.device, self.processes.world_size, self.data_digest)
        try:
            # Before the first step, so that a folder or disk that takes no checkpoint is known at once.
            self.save(folder)
            while self.epoch < self.epochs:
                yield from self._run_epoch(folder, request)
        except OSError as error:
            whole = describe(list_checkpoints(folder))
            if whole is None:
                raise
            raise UnavailableError(f'{error}. {whole} Go on with --resume {folder}') from error

    def _run_epoch(self, folder: Path, request: StopRequest) -> Iterator[None]:
        title = f'epoch {self.epoch + 1}/{self.epochs}'
        yield from self._train_epoch(folder, request, title)
        group = self.steps.optimizer.param_groups[0]
        lr = group['lr'] / group['lr_scale']
        metrics = {}
        if self.val_batches is not None:
            metrics = evaluate(self._evaluated(), self.val_batches, self.args, f'{title} evaluation', show=self.show)
        loss = self.processes.mean(self.loss_sum / self.sampler.batches)
        self.history.append({
            'epoch': self.epoch, 'train_loss': loss,
            **{f'eval_{name}': value for name, value in metrics.items()},
            'lr': lr, 'seconds': round(self.seconds, 3),
        })
        speed = self.sampler.batches * self.args.batch_size * self.processes.world_size / self.seconds
        self.steps.scheduler.step(self.epoch + 1, metrics.get('top1'))
        ends = self.epoch + 1 == self.epochs or request.requested
        saves = ends or time.monotonic() - self.saved_at >= self.args.checkpoint_seconds
        if not self.args.val_fraction:
            self.best, keeps = _Best(self.epoch, metrics.get('top1', math.nan)), saves
        else:
            keeps = self.best is None or metrics['top1'] > self.best.top1
            # Weights that are kept and the checkpoint that says of which epoch they are belong together.
            saves = saves or keeps
            if keeps:
                self.best = _Best(self.epoch, metrics['top1'])
        if keeps:
            self._save_weights(folder)
        self.epoch, self.batch, self.loss_sum, self.seconds = self.epoch + 1, 0, 0., 0.
        if saves:
            self.save(folder)
        if self.logs is not None:
            self.logs.epoch(self.history)
        if self.show:
            numbers = f'eval loss {metrics["loss"]:.4f}  top1 {metrics["top1"]:.3f}  ' if metrics else ''
            print(f'{title}  train loss {loss:.4f}  {numbers}lr {lr:.4g}  {speed:.0f} images/s', flush=True)
        if request.requested and self.epoch < self.epochs:
            self._stop(folder, request)

    def _train_epoch(self, folder: Path, request: StopRequest, title: str) -> Iterator[None]:
        """Train on the rest of the epoch."""
        args, steps = self.args, self.steps
        set_training(self.model)
        batches, begin = self.sampler.batches, self.batch
        self.sampler.set_position(self.epoch, begin)
        # On the device, so that nothing waits for it; in float64, so that the sum of many batches stays one.
        loss_sum = torch.tensor(self.loss_sum, dtype=torch.float64, device=args.device)
        progress = tqdm(
            self.train_batches, desc=title, unit='batch', total=batches, initial=begin, leave=False,
            disable=None if self.show else True,
        )
        # As if all of the epoch had been trained in one go.
        start = time.perf_counter() - self.seconds
        for batch, (images, targets) in enumerate(progress, begin):
            updates = steps.updates
            loss_sum += steps.step(images, targets, self.epoch, batch, batches)
            done = batch + 1
            looks = done % _LOOK_EVERY == 0 or done == batches
            saves = steps.updates > updates and args.checkpoint_interval and (
                steps.updates % args.checkpoint_interval == 0) and done < batches
            stops = steps.updates > updates and request.requested and done < batches
            if looks or saves or stops:
                self.batch, self.loss_sum, self.seconds = done, loss_sum.item(), time.perf_counter() - start
                if not math.isfinite(self.loss_sum):
                    raise DivergedError(
                        f'{title}: the loss is not finite, within the {_LOOK_EVERY} batches before batch {done}. '
                        f'Try a lower --lr or --clip-grad 1.'
                    )
                progress.set_postfix(
                    loss=f'{self.loss_sum / done:.3f}', lr=f'{steps.optimizer.param_groups[0]["lr"]:.2g}',
                )
            if saves:
                # From here on all processes have the sum that the checkpoint has.
                self.loss_sum = self.processes.mean(self.loss_sum)
                loss_sum.fill_(self.loss_sum)
                self.save(folder)
            if stops:
                self._stop(folder, request)
            yield
        if self.batch < batches:
            raise InvalidInputError(f'{title}: the data ended after {self.batch} of {batches} batches.')

    def _stop(self, folder: Path, request: StopRequest) -> None:
        # Processes are not told at the same batch, and a stream begins at its beginning: both go back to the last
        # checkpoint.
        if self.processes.world_size == 1 and (self.sampler.starts_anywhere or not self.batch):
            self.save(folder)
        raise Interrupted(request.requested, folder, self.processes.world_size)

    def _evaluated(self) -> nn.Module:
        """The network whose weights are evaluated and shipped."""
        return self.model if self.steps.ema is None else self.steps.ema.module

    def _save_weights(self, folder: Path) -> None:
        if self.processes.is_primary:
            metadata = {
                'model': self.args.model, 'epoch': str(self.epoch), 'format': 'pt',
                **options_metadata(vars(self.args)), **classes_metadata(class_names(self.train_set)),
            }
            content = weights_bytes(self._evaluated().state_dict(), metadata)
            write_file(folder / 'model.safetensors', content)

    def finish(self, folder: Path) -> Dict[str, Any]:
        """Write the results of the weights that are kept, with the split that each is from, and close the logs.

        Returns:
            See `fit`.
        """
        kept = {'epoch': self.best.epoch, 'chosen': 'best' if self.args.val_fraction else 'last'}
        results = []
        if self.val_set is not None:
            row = self.history[self.best.epoch]
            results.append({
                'split': self.val_name, 'images': self._val_size(), **kept,
                **{name: row[f'eval_{name}'] for name in ('loss', 'top1', 'top5')},
            })
        if self.test_set is not None:
            self.processes.barrier()
            model = self._evaluated()
            load_weights(model, read_weights(folder / 'model.safetensors'), folder)
            title = f'test on {self.args.test_split}'
            metrics = evaluate(model, self.test_batches, self.args, title, show=self.show)
            results.append({
                'split': self.args.test_split, 'images': size_of(self.test_set), **kept, **metrics,
            })
        if results and self.processes.is_primary:
            write_csv(results, folder / 'results.csv')
        if self.logs is not None:
            self.logs.finish(self.history)
        return results[-1] if results else {}
