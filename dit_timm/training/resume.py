"""Saving where a run stands, and resuming it there.

That a resumed run computes what it would have computed needs two things more: `data.randomness`, by which all that is
drawn depends on seed, epoch and batch or image alone, and the sampler, which continues at any batch.
"""

import time
from pathlib import Path

from ..errors import DamagedFileError
from ..pretrained.weight_files import load_weights
from .checkpoint import load_checkpoint, save_checkpoint
from .run import Best, Run, State


def restore(run: Run, folder: Path) -> None:
    """Put a run where its last checkpoint stood.

    Raises:
        DamagedFileError: It is damaged, or of another network or number of processes.
    """
    path, weights, state = load_checkpoint(folder)
    if state['world_size'] != run.processes.world_size:
        raise DamagedFileError(
            f'{path} is of a run of {state["world_size"]} processes; this one has {run.processes.world_size}, and '
            f'would train on other batches.'
        )
    load_weights(run.model, weights['model'], path)
    if run.steps.ema is not None:
        load_weights(run.steps.ema.module, weights['ema'], path)
    run.steps.load_state_dict(state['steps'])
    if run.data_digest and state.get('data') not in (None, run.data_digest):
        raise DamagedFileError(
            f'{path} is of a run on other images: those of {run.args.train_split!r} in {run.args.data_dir} have '
            f'changed since. Bring them back, or begin a new run.'
        )
    run.state = State(**{name: state[name] for name in ('epoch', 'batch', 'loss_sum', 'seconds', 'history')})
    run.state.best = None if state['best'] is None else Best(*state['best'])


def save(run: Run, folder: Path) -> None:
    """Write a checkpoint; the first process does it for all.

    Raises:
        OSError: It could not be written.
    """
    run.saved_at = time.monotonic()
    if not run.processes.is_primary:
        return
    state, weights = run.state, {'model': run.model.state_dict()}
    if run.steps.ema is not None:
        weights['ema'] = run.steps.ema.module.state_dict()
    save_checkpoint(folder, state.epoch, state.batch, weights, {
        **vars(state), 'best': None if state.best is None else tuple(state.best),
        'world_size': run.processes.world_size, 'data': run.data_digest, 'steps': run.steps.state_dict(),
    })
