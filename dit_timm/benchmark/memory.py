"""Peak memory of a call, beyond its inputs and everything else that existed before; outputs and gradients count.

On a CPU: by how much the resident memory of a process grows at its highest. Every implementation has a process of its
own, started afresh, so that neither the memory another has touched nor what an allocator has kept is in the numbers,
and what a compiled kernel allocates by itself is. The kernel's high-water mark (VmHWM) is set back before each call;
`getrusage` has no such mark, and a process inherits its `ru_maxrss` from the one that started it. Resident memory
counts pages, those of library code included, hence nothing below about a MiB is to be trusted. Needs Linux.

On a GPU: the highest number of bytes that torch's allocator had handed out at a time, in a second call.
"""

import ctypes
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, Optional

import torch

from .implementation import Implementation

MIB = 1 << 20
_CHILD = 'from dit_timm.benchmark.memory import child; child()'
_CLEAR_REFS = Path('/proc/self/clear_refs')


def peaks(run: Implementation) -> Dict[str, Optional[int]]:
    """Measure every phase of an implementation.

    Args:
        run: The implementation.

    Returns:
        Bytes by phase: None where this platform has no measure; a phase that ran out of memory is missing.

    Raises:
        RuntimeError: The implementation failed in another way.
    """
    device_type = torch.device(run.device).type
    if device_type == 'cpu' and _CLEAR_REFS.exists():
        return _peaks_in_child(run)
    if device_type == 'cuda':
        return _peaks_on_gpu(run)
    return {phase: None for phase in run.phases}


@contextmanager
def suppress_out_of_memory() -> Iterator[None]:
    """Leave the block quietly if memory runs out in it; any other error passes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Of its CPU allocator torch raises a plain RuntimeError.
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and 'DefaultCPUAllocator' not in str(error):
            raise


def _peaks_on_gpu(run: Implementation) -> Dict[str, Optional[int]]:
    found = {}
    for phase in run.phases:
        with suppress_out_of_memory():
            work = run.build(phase)
            # The first call at this size may search for the fastest kernel, with memory of its own.
            work.function()
            gc.collect()
            torch.cuda.synchronize(run.device)
            before = torch.cuda.memory_allocated(run.device)
            torch.cuda.reset_peak_memory_stats(run.device)
            work.function()
            torch.cuda.synchronize(run.device)
            found[phase] = torch.cuda.max_memory_allocated(run.device) - before
    return found


def _peaks_in_child(run: Implementation) -> Dict[str, Optional[int]]:
    # Not multiprocessing: it would import the main script, and with it much that this implementation does not use.
    process = subprocess.run(
        [sys.executable, '-c', _CHILD],
        input=pickle.dumps((torch.get_num_threads(), run)),
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
    )
    # The kernel kills a process that touches more memory than there is.
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f'measuring the memory of {run} failed:\n{process.stderr.decode()}')
    found = {}
    for line in process.stdout.splitlines():
        found.update(json.loads(line))
    return found


def child() -> None:
    """Measure the implementation that comes as a pickle on stdin; writes a JSON object for each phase to stdout."""
    # Whatever else is printed, say by a compiler, must not come in between.
    results = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # If memory runs out, this process is the one to go.
    Path('/proc/self/oom_score_adj').write_text('1000')
    threads, run = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    for phase in run.phases:
        with suppress_out_of_memory():
            print(json.dumps({phase: _peak_of_process(run, phase)}), file=results, flush=True)


def _peak_of_process(run: Implementation, phase: str) -> int:
    work = run.build(phase)
    work.warm_up()
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        # Memory that glibc kept from earlier would serve this call without showing.
        libc.malloc_trim(0)
    _CLEAR_REFS.write_text('5')
    before = _status('VmRSS')
    result = work.function()
    peak = _status('VmHWM') - before
    del result
    return peak


def _status(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        name, _, value = line.partition(':')
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f'/proc/self/status has no {field}.')
