"""Trains in processes that are killed again and again; for test_resume.py. Not collected by pytest.

`python kill_runs.py FOLDER KILLS TRAIN_OPTIONS...` writes FOLDER/whole, a run that is let alone, and runs
FOLDER/killed-N, which are killed and resumed until they end, as many as it takes for KILLS kills. Prints a line for
each kill.

Half of the kills come at a random time, half in the middle of a save: before the n-th time that a file is brought to
the disk or renamed. Processes are forked, since importing torch takes longer than the whole run.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from dit_timm.cli import train

torch.set_num_threads(1)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def dying(function, calls):
    """A function that kills its process in place of its n-th call from now."""
    def wrapper(*args, **kwargs):
        calls[0] -= 1
        if calls[0] == 0:
            die()
        return function(*args, **kwargs)
    return wrapper


def start(options, calls=None):
    """Train in a fork; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        if calls is not None:
            os.fsync, os.replace = dying(os.fsync, calls), dying(os.replace, calls)
        train.main(options)
        code = 0
    finally:
        os._exit(code)


def end(process):
    """Wait for a fork; returns whether it was killed."""
    status = os.waitpid(process, 0)[1]
    killed = os.WIFSIGNALED(status)
    if not killed and os.WEXITSTATUS(status) != 0:
        sys.exit('a run failed')
    return killed


def main(folder, kills, options):
    rng = random.Random(0)
    begin = time.monotonic()
    assert not end(start(['--output', str(folder), '--experiment', 'whole', *options]))
    whole_seconds = time.monotonic() - begin
    runs = 0
    while kills > 0:
        name = f'killed-{runs}'
        runs += 1
        killed = True
        while killed:
            resumes = (folder / name / 'args.yaml').exists()
            if not resumes:
                # Killed before it had said what it is: it never began.
                shutil.rmtree(folder / name, ignore_errors=True)
            how = ['--resume', str(folder / name)] if resumes else [
                '--output', str(folder), '--experiment', name, *options,
            ]
            if kills <= 0:
                killed = end(start(how))
            elif kills % 2:
                process = start(how, [rng.randint(1, 30)])
                killed = end(process)
            else:
                process = start(how)
                time.sleep(rng.uniform(0, whole_seconds / 2))
                os.kill(process, signal.SIGKILL)
                killed = end(process)
            if killed:
                kills -= 1
                places = sorted(path.name for path in (folder / name / 'checkpoints').glob('0*'))
                print(f'killed {name} at {places[-1:]}', flush=True)


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
