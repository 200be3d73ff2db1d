"""Training a run from where it stands to its results: epochs, evaluation, weights that are kept."""

import math
import time
from pathlib import Path
from typing import Any, Dict, Iterator

import torch
from tqdm import tqdm

from ..data.inputs import options_metadata
from ..data.splits import class_names
from ..data.streams import size_of
from ..errors import DivergedError, InvalidInputError, UnavailableError
from ..files import write_file
from ..pretrained.weight_files import load_weights, read_weights, weights_bytes
from .checkpoint import describe, list_checkpoints
from .engine import evaluate
from .environment import note_environment
from .interrupt import Interrupt, Interrupted, StopRequest
from .logs import Logs, write_csv
from .optim import set_training
from .resume import save
from .run import Best, Run
from .trained import classes_metadata

# Batches between looks at the loss, which wait for the device.
_LOOK_EVERY = 50


def fit(run: Run, folder: Path) -> Dict[str, Any]:
    """Train to the end, evaluating and saving after each epoch.

    Args:
        run: The run.
        folder: Its folder.

    Returns:
        The row of results of the last evaluation, on the test split if there is one; {} without any.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
        DivergedError: The loss is not finite.
        UnreadableImageError: An image cannot be read.
        OSError: A file cannot be written; the last good checkpoint is intact.
    """
    with Interrupt() as interrupt:
        for _ in train(run, folder, interrupt):
            pass
    return finish(run, folder)


def train(run: Run, folder: Path, request: StopRequest) -> Iterator[None]:
    """`fit` up to the last checkpoint as a generator of steps, so that `pool` can interleave runs.

    Args:
        run: The run.
        folder: Its folder.
        request: What stops the run when its `requested` is set.

    Yields:
        After each step.
    """
    if run.processes.is_primary:
        run.logs = Logs(folder, run.args)
        note_environment(folder, run.args.device, run.processes.world_size, run.data_digest)
    try:
        # Before the first step, so that a folder or disk that takes no checkpoint is known at once.
        save(run, folder)
        while run.state.epoch < run.epochs:
            yield from _run_epoch(run, folder, request)
    except OSError as error:
        whole = describe(list_checkpoints(folder))
        if whole is None:
            raise
        raise UnavailableError(f'{error}. {whole} Go on with --resume {folder}') from error


def _run_epoch(run: Run, folder: Path, request: StopRequest) -> Iterator[None]:
    """Train on the rest of an epoch, evaluate, and save."""
    args, state = run.args, run.state
    title = f'epoch {state.epoch + 1}/{run.epochs}'
    yield from _train_epoch(run, folder, request, title)
    group = run.steps.optimizer.param_groups[0]
    lr = group['lr'] / group['lr_scale']
    metrics = {}
    if run.val_batches is not None:
        metrics = evaluate(run.evaluated, run.val_batches, args, f'{title} evaluation', show=run.show)
    loss = run.processes.mean(state.loss_sum / run.sampler.batches)
    state.history.append({
        'epoch': state.epoch, 'train_loss': loss,
        **{f'eval_{name}': value for name, value in metrics.items()},
        'lr': lr, 'seconds': round(state.seconds, 3),
    })
    speed = run.sampler.batches * args.batch_size * run.processes.world_size / state.seconds
    run.steps.scheduler.step(state.epoch + 1, metrics.get('top1'))
    ends = state.epoch + 1 == run.epochs or request.requested
    saves = ends or time.monotonic() - run.saved_at >= args.checkpoint_seconds
    if not args.val_fraction:
        state.best, keeps = Best(state.epoch, metrics.get('top1', math.nan)), saves
    else:
        keeps = state.best is None or metrics['top1'] > state.best.top1
        # Weights that are kept and the checkpoint that says of which epoch they are belong together.
        saves = saves or keeps
        if keeps:
            state.best = Best(state.epoch, metrics['top1'])
    if keeps:
        _save_weights(run, folder)
    state.epoch, state.batch, state.loss_sum, state.seconds = state.epoch + 1, 0, 0., 0.
    if saves:
        save(run, folder)
    if run.logs is not None:
        run.logs.epoch(state.history)
    if run.show:
        numbers = f'eval loss {metrics["loss"]:.4f}  top1 {metrics["top1"]:.3f}  ' if metrics else ''
        print(f'{title}  train loss {loss:.4f}  {numbers}lr {lr:.4g}  {speed:.0f} images/s', flush=True)
    if request.requested and state.epoch < run.epochs:
        _stop(run, folder, request)


def _train_epoch(run: Run, folder: Path, request: StopRequest, title: str) -> Iterator[None]:
    """Train on the rest of an epoch."""
    args, steps, state = run.args, run.steps, run.state
    set_training(run.model)
    batches, begin = run.sampler.batches, state.batch
    run.sampler.set_position(state.epoch, begin)
    # On the device, so that nothing waits for it; in float64, so that the sum of many batches stays one.
    loss_sum = torch.tensor(state.loss_sum, dtype=torch.float64, device=args.device)
    progress = tqdm(
        run.train_batches, desc=title, unit='batch', total=batches, initial=begin, leave=False,
        disable=None if run.show else True,
    )
    # As if all of the epoch had been trained in one go.
    start = time.perf_counter() - state.seconds
    for batch, (images, targets) in enumerate(progress, begin):
        updates = steps.updates
        loss_sum += steps.step(images, targets, state.epoch, batch, batches)
        done = batch + 1
        looks = done % _LOOK_EVERY == 0 or done == batches
        saves = steps.updates > updates and args.checkpoint_interval and (
            steps.updates % args.checkpoint_interval == 0) and done < batches
        stops = steps.updates > updates and request.requested and done < batches
        if looks or saves or stops:
            state.batch, state.loss_sum, state.seconds = done, loss_sum.item(), time.perf_counter() - start
            if not math.isfinite(state.loss_sum):
                raise DivergedError(
                    f'{title}: the loss is not finite, within the {_LOOK_EVERY} batches before batch {done}. '
                    f'Try a lower --lr or --clip-grad 1.'
                )
            progress.set_postfix(
                loss=f'{state.loss_sum / done:.3f}', lr=f'{steps.optimizer.param_groups[0]["lr"]:.2g}',
            )
        if saves:
            # From here on all processes have the sum that the checkpoint has.
            state.loss_sum = run.processes.mean(state.loss_sum)
            loss_sum.fill_(state.loss_sum)
            save(run, folder)
        if stops:
            _stop(run, folder, request)
        yield
    if state.batch < batches:
        raise InvalidInputError(f'{title}: the data ended after {state.batch} of {batches} batches.')


def _stop(run: Run, folder: Path, request: StopRequest) -> None:
    # Processes are not told at the same batch, and a stream begins at its beginning: both go back to the last
    # checkpoint.
    if run.processes.world_size == 1 and (run.sampler.starts_anywhere or not run.state.batch):
        save(run, folder)
    assert request.requested is not None
    raise Interrupted(request.requested, folder, run.processes.world_size)


def _save_weights(run: Run, folder: Path) -> None:
    if run.processes.is_primary:
        metadata = {
            'model': run.args.model, 'epoch': str(run.state.epoch), 'format': 'pt',
            **options_metadata(vars(run.args)), **classes_metadata(class_names(run.data.train)),
        }
        write_file(folder / 'model.safetensors', weights_bytes(run.evaluated.state_dict(), metadata))


def finish(run: Run, folder: Path) -> Dict[str, Any]:
    """Write the results of the weights that are kept, with the split that each is from, and close the logs.

    Returns:
        See `fit`.
    """
    args, data, best = run.args, run.data, run.state.best
    assert best is not None, 'no epoch is done'
    kept = {'epoch': best.epoch, 'chosen': 'best' if args.val_fraction else 'last'}
    results = []
    if data.val is not None:
        row = run.state.history[best.epoch]
        results.append({
            'split': data.val_name, 'images': data.val_size, **kept,
            **{name.removeprefix('eval_'): value for name, value in row.items() if name.startswith('eval_')},
        })
    if data.test is not None and run.test_batches is not None:
        run.processes.barrier()
        load_weights(run.evaluated, read_weights(folder / 'model.safetensors'), folder)
        metrics = evaluate(run.evaluated, run.test_batches, args, f'test on {args.test_split}', show=run.show)
        results.append({'split': args.test_split, 'images': size_of(data.test), **kept, **metrics})
    if results and run.processes.is_primary:
        write_csv(results, folder / 'results.csv')
    if run.logs is not None:
        run.logs.finish(run.state.history)
    return results[-1] if results else {}
