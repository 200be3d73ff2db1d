"""Stopping when asked to: Ctrl-C and SIGTERM are remembered until the run stands where it can be saved."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Optional


class StopRequest:
    """Asks a run to stop at the next place where it can be saved.

    Attributes:
        requested: What asks, such as the name of a signal; None while nothing does.
    """

    def __init__(self) -> None:
        self.requested: Optional[str] = None


class Interrupt(StopRequest):
    """Context in which the first Ctrl-C or SIGTERM only sets `requested`; a second one acts as ever."""

    def __init__(self) -> None:
        super().__init__()
        self._before = {}

    def __enter__(self) -> 'Interrupt':
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        self.requested = signal.Signals(number).name
        if os.environ.get('RANK', '0') == '0':
            print(f'{self.requested}: stops at the next batch; once more to stop at once.', file=sys.stderr, flush=True)
        signal.signal(number, self._before[number])


# No error, as KeyboardInterrupt is none.
class Interrupted(Exception):  # noqa: N818
    """A run stopped where it was asked to, and can go on; the message says how.

    Args:
        signal_name: What asked.
        folder: The folder of the run.
        processes: How many it needs to go on.
    """

    def __init__(self, signal_name: str, folder: Path, processes: int = 1) -> None:
        together = f' and torchrun, {processes} processes' if processes > 1 else ''
        super().__init__(f'{signal_name}: stopped. Go on with --resume {folder}{together}')
