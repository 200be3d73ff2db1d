"""A training run from its first step to its results, through any number of interruptions."""

import argparse
import math
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn
from tqdm import tqdm

from dit_timm.models.weight_files import DamagedFile, load_weights, read_weights, weights_bytes, write_file

from .checkpoint import describe, list_checkpoints, load_checkpoint, save_checkpoint
from .data import check_classes, class_names, data_config, held_out_name, hold_out, open_split
from .engine import evaluate, lacks_bfloat16
from .images import unreadable
from .interrupt import Interrupt, Interrupted
from .loaders import eval_loader, train_loader
from .logs import Logs, write_csv
from .model import build_model
from .optim import freeze_all_but, is_quadratic, parameter_groups, set_training
from .processes import Processes
from .steps import Steps
from .streams import check_options, is_stream, size_of
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

    Raises:
        ValueError: Options or data do not fit together.
    """

    def __init__(self, args: argparse.Namespace, processes: Processes) -> None:
        self.args, self.processes = args, processes
        self._open_data()
        self.model = build_model(args, drop_rate=args.drop, drop_path_rate=args.drop_path)
        if args.grad_checkpointing:
            self.model.set_grad_checkpointing()
        args.num_classes = self.model.num_classes
        self.trained = sum(parameter.numel() for parameter in self.model.parameters())
        if args.train_only:
            self.trained = freeze_all_but(self.model, args.train_only)
        config = data_config(args, self.model)
        self.train_batches, self.sampler = train_loader(
            args, self.train_set, config, self.train_indices, processes.rank, processes.world_size,
        )
        self.val_batches = eval_loader(
            args, self.val_set, config, self.val_indices, processes.rank, processes.world_size,
        )
        self.config = config
        groups = parameter_groups(
            self.model, args.weight_decay, args.quadratic_lr_scale, args.layer_decay, args.decay_norms,
        )
        optional = {'eps': args.opt_eps, 'betas': args.opt_betas}
        # The groups say what decays.
        optimizer = create_optimizer_v2(
            groups, opt=args.opt, lr=args.lr, weight_decay=0., momentum=args.momentum,
            **{key: value for key, value in optional.items() if value is not None},
        )
        updates = -(-self.sampler.batches // args.grad_accum_steps)
        scheduler, self.epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates)
        self.steps = Steps(self._wrapped(), self.model, optimizer, scheduler, args, processes.rank)
        self.epoch = self.batch = 0
        self.loss_sum = 0.
        self.seconds = 0.
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
            self.val_set, self.val_name = open_split(args, args.val_split), args.val_split
        args.num_classes = check_classes(self.train_set, self.val_set, args.num_classes)
        self.skipped = 0
        if args.skip_bad_images:
            self.train_indices = self._readable(self.train_set, self.train_indices)
            self.val_indices = self._readable(self.val_set, self.val_indices)
        self.test_set = open_split(args, args.test_split) if args.test_split else None
        if self.test_set is not None:
            check_classes(self.train_set, self.test_set, args.num_classes)

    def _readable(self, dataset: Any, indices: Optional[List[int]]) -> List[int]:
        indices = range(len(dataset)) if indices is None else indices
        bad = set(unreadable(dataset, indices, self.args.workers))
        self.skipped += len(bad)
        return [index for index in indices if index not in bad]

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
            DamagedFile: It is damaged, or of another network or number of processes.
        """
        checkpoint = load_checkpoint(folder)
        state = checkpoint.state
        if state['world_size'] != self.processes.world_size:
            raise DamagedFile(
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
        self.best = None if state['best'] is None else _Best(*state['best'])

    def save(self, folder: Path) -> None:
        """Write a checkpoint; the first process does it for all.

        Raises:
            OSError: It could not be written.
        """
        if not self.processes.is_first:
            return
        weights = {'model': self.model.state_dict()}
        if self.steps.ema is not None:
            weights['ema'] = self.steps.ema.module.state_dict()
        save_checkpoint(folder, self.epoch, self.batch, weights, {
            'epoch': self.epoch, 'batch': self.batch, 'loss_sum': self.loss_sum, 'seconds': self.seconds,
            'history': self.history,
            'best': None if self.best is None else tuple(self.best), 'world_size': self.processes.world_size,
            'steps': self.steps.state_dict(),
        })

    def _val_size(self) -> int:
        return size_of(self.val_set) if self.val_indices is None else len(self.val_indices)

    def fit(self, folder: Path) -> Dict[str, Any]:
        """Train to the end, evaluating and saving after each epoch.

        Args:
            folder: The folder of the run.

        Returns:
            The row of results of the last evaluation: on the test split if there is one.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
            FloatingPointError: The loss is not finite.
            UnreadableImage: An image cannot be read.
            OSError: A file cannot be written; the last good checkpoint is intact.
        """
        logs = Logs(folder, self.args) if self.processes.is_first else None
        try:
            # Before the first step, so that a folder or disk that takes no checkpoint is known at once.
            self.save(folder)
            with Interrupt() as interrupt:
                while self.epoch < self.epochs:
                    self._run_epoch(folder, interrupt, logs)
        except OSError as error:
            whole = describe(list_checkpoints(folder))
            if whole is None:
                raise
            raise OSError(f'{error}. {whole} Go on with --resume {folder}') from error
        results = self._final(folder)
        if logs is not None:
            logs.finish(self.history)
        return results

    def _run_epoch(self, folder: Path, interrupt: Interrupt, logs: Optional[Logs]) -> None:
        title = f'epoch {self.epoch + 1}/{self.epochs}'
        self._train(folder, interrupt, title)
        group = self.steps.optimizer.param_groups[0]
        lr = group['lr'] / group['lr_scale']
        metrics = evaluate(
            self._evaluated(), self.val_batches, self.args, f'{title} evaluation', show=self.processes.is_first,
        )
        loss = self.processes.mean(self.loss_sum / self.sampler.batches)
        self.history.append({
            'epoch': self.epoch, 'train_loss': loss,
            **{f'eval_{name}': value for name, value in metrics.items()},
            'lr': lr, 'seconds': round(self.seconds, 3),
        })
        speed = self.sampler.batches * self.args.batch_size * self.processes.world_size / self.seconds
        self.steps.scheduler.step(self.epoch + 1, metrics['top1'])
        if not self.args.val_fraction or self.best is None or metrics['top1'] > self.best.top1:
            self.best = _Best(self.epoch, metrics['top1'])
            self._save_weights(folder)
        self.epoch, self.batch, self.loss_sum, self.seconds = self.epoch + 1, 0, 0., 0.
        self.save(folder)
        if logs is not None:
            logs.epoch(self.history)
            print(f'{title}  train loss {loss:.4f}  eval loss {metrics["loss"]:.4f}  top1 {metrics["top1"]:.3f}  '
                  f'lr {lr:.4g}  {speed:.0f} images/s', flush=True)
        if interrupt.requested and self.epoch < self.epochs:
            self._stop(folder, interrupt)

    def _train(self, folder: Path, interrupt: Interrupt, title: str) -> None:
        """Train on the rest of the epoch."""
        args, steps = self.args, self.steps
        set_training(self.model)
        batches, begin = self.sampler.batches, self.batch
        self.sampler.set_position(self.epoch, begin)
        # On the device, so that nothing waits for it; in float64, so that the sum of many batches stays one.
        loss_sum = torch.tensor(self.loss_sum, dtype=torch.float64, device=args.device)
        progress = tqdm(
            self.train_batches, desc=title, unit='batch', total=batches, initial=begin, leave=False,
            disable=None if self.processes.is_first else True,
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
            stops = steps.updates > updates and interrupt.requested and done < batches
            if looks or saves or stops:
                self.batch, self.loss_sum, self.seconds = done, loss_sum.item(), time.perf_counter() - start
                if not math.isfinite(self.loss_sum):
                    raise FloatingPointError(
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
                self._stop(folder, interrupt)
        if self.batch < batches:
            raise ValueError(f'{title}: the data ended after {self.batch} of {batches} batches.')

    def _stop(self, folder: Path, interrupt: Interrupt) -> None:
        # Processes are not told at the same batch, and a stream begins at its beginning: both go back to the last
        # checkpoint.
        if self.processes.world_size == 1 and (self.sampler.starts_anywhere or not self.batch):
            self.save(folder)
        raise Interrupted(interrupt.requested, folder, self.processes.world_size)

    def _evaluated(self) -> nn.Module:
        """The network whose weights are evaluated and shipped."""
        return self.model if self.steps.ema is None else self.steps.ema.module

    def _save_weights(self, folder: Path) -> None:
        if self.processes.is_first:
            metadata = {
                'model': self.args.model, 'epoch': str(self.epoch), 'format': 'pt',
                **classes_metadata(class_names(self.train_set)),
            }
            content = weights_bytes(self._evaluated().state_dict(), metadata)
            write_file(folder / 'model.safetensors', content)

    def _final(self, folder: Path) -> Dict[str, Any]:
        """The results of the weights that are kept, with the split that each is from."""
        row = self.history[self.best.epoch]
        chosen = 'best' if self.args.val_fraction else 'last'
        results = [{
            'split': self.val_name, 'images': self._val_size(), 'epoch': self.best.epoch, 'chosen': chosen,
            **{name: row[f'eval_{name}'] for name in ('loss', 'top1', 'top5')},
        }]
        if self.test_set is not None:
            self.processes.wait()
            model = self._evaluated()
            load_weights(model, read_weights(folder / 'model.safetensors'), folder)
            loader = eval_loader(
                self.args, self.test_set, self.config, None, self.processes.rank, self.processes.world_size,
            )
            metrics = evaluate(model, loader, self.args, f'test on {self.args.test_split}')
            results.append({
                **results[0], 'split': self.args.test_split, 'images': size_of(self.test_set), **metrics,
            })
        if self.processes.is_first:
            write_csv(results, folder / 'results.csv')
        return results[-1]

