"""Other processes that keep the CPU busy while something is timed, as those that load data do."""

import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import Iterator

# It ends when its stdin does, so that it outlives its parent in no case, not even one that is killed.
_BUSY = """
import sys, threading
closed = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), closed.set()), daemon=True).start()
print(flush=True)
while not closed.is_set():
    pass
"""


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Have so many processes compute beside the block; none is left after it.

    Each is a session of its own: where the scheduler shares the CPU out among sessions, it has a share of its own, and
    Ctrl-C in the terminal reaches it through this process alone.

    Args:
        count: How many.
    """
    processes = []
    try:
        for _ in range(count):
            processes.append(subprocess.Popen(
                [sys.executable, '-c', _BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            ))
        for process in processes:
            # They compute from here on.
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate()
