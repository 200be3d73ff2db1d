"""Commands that run one at a time, an epoch each, so that all see the same machine."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Callable, List, Optional, Type

_POLL_S = 0.005


class CommandFailedError(Exception):
    """A implementation did not end well."""


class InTurns:
    """A command that stands still, with all its processes, except in its turns.

    It runs in a process group of its own, which is stopped between turns and killed at the end.

    Args:
        words: The command.
        output: Where its output goes; it gets two files.
        marks: Says in which file the command adds a line when it has finished an epoch, from the file of its stdout.
            The file need not exist yet.
    """

    def __init__(self, words: List[str], output: Path, marks: Callable[[Path], Path]) -> None:
        self._words = words
        self._output = output
        self._stdout, self._stderr = output / 'stdout.txt', output / 'stderr.txt'
        self._marks = marks(self._stdout)

    def __enter__(self) -> 'InTurns':
        with self._stdout.open('wb') as stdout, self._stderr.open('wb') as stderr:
            self._process = subprocess.Popen(self._words, stdout=stdout, stderr=stderr, start_new_session=True)
        self._signal(signal.SIGSTOP)
        return self

    def __exit__(
            self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType],
    ) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def turn(self) -> float:
        """Let it run until it has finished one epoch more.

        Returns:
            The seconds that it ran.

        Raises:
            CommandFailedError: It ended before that.
        """
        before = self._epochs()
        start = time.perf_counter()
        self._signal(signal.SIGCONT)
        while self._epochs() == before:
            if self._process.poll() is not None and self._epochs() == before:
                raise CommandFailedError(
                    f'{shlex.join(self._words)} ended with {self._process.returncode}:\n'
                    f'{self._stderr.read_text(errors="replace")[-2000:]}'
                )
            time.sleep(_POLL_S)
        seconds = time.perf_counter() - start
        self._signal(signal.SIGSTOP)
        return seconds

    def _epochs(self) -> int:
        try:
            return self._marks.read_bytes().count(b'\n')
        except FileNotFoundError:
            return 0

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            # All of them have ended; the next turn says so.
            pass
