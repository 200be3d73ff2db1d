"""Several runs at once in one process: each takes a step in turn, and has a stream of its own on a GPU.

A run must know nothing of the others. It draws random numbers only right after it has seeded the generators, within a
step, so that it computes what it would compute alone.
"""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import torch

from ..errors import UserError, message_of
from .fit import finish, train
from .interrupt import Interrupted, StopRequest
from .run import Run

# What ends one run and says why, and leaves the others as they are.
RUN_ERRORS = (UserError, torch.OutOfMemoryError)
# Seconds between looks at the speed, and between lines that report it.
_LOOK_SECONDS, _REPORT_SECONDS = 3., 30.
# Runs that it takes to fill a GPU, at most.
_FILLING = 2
# Of the time that is left, the share that plans may fill.
_SHARE = 0.95


class Job:
    """A run on its way.

    Args:
        name: Its name.
        run: It, where it stopped or begins.
        folder: Its folder.
        macs: Multiply-accumulates for one image, forward.
        close: Called when the run rests or has ended.
    """

    def __init__(
            self, name: str, run: Run, folder: Path, macs: float, close: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.run, self.folder, self.macs, self.close = name, run, folder, macs, close
        self.request = StopRequest()
        self.stream: Optional[torch.cuda.Stream] = None
        # Its first step is to come, in which kernels are compiled and a graph is captured.
        self.is_cold = True
        self._steps = train(run, folder, self.request)
        # Or an error has ended it: no step may follow either, nor results.
        self._has_ended = False

    def step(self) -> bool:
        """Take a step; False if there was none left, and the results are written."""
        if self._has_ended:
            return False
        self.is_cold, self._has_ended = False, True
        with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            if next(self._steps, self) is self:
                finish(self.run, self.folder)
            else:
                self._has_ended = False
        return not self._has_ended

    def stop(self, reason: str) -> bool:
        """Save a checkpoint and rest; False if there was no step left, and the results are written."""
        self.request.requested = reason
        try:
            if self.is_cold:
                # Nothing was done that is not saved.
                return True
            while self.step():
                pass
            return False
        except Interrupted:
            return True
        finally:
            self.close()

    def drop(self) -> None:
        """Leave a run that an error has ended; its memory is free when nothing of it is under way any more."""
        if self.stream is not None:
            self.stream.synchronize()
        self.close()

    @property
    def images(self) -> int:
        """Images of a step."""
        return self.run.args.batch_size

    @property
    def cost(self) -> float:
        """Multiply-accumulates of a step."""
        return self.images * self.macs

    @property
    def left(self) -> float:
        """Multiply-accumulates to the end."""
        run, state = self.run, self.run.state
        steps = (run.epochs - state.epoch) * run.sampler.batches - state.batch
        return steps * self.cost

    def describe(self) -> str:
        """Where it stands."""
        state = self.run.state
        loss = state.loss_sum / state.batch if state.batch else (
            state.history[-1]['train_loss'] if state.history else float('nan'))
        return f'{self.name} {state.epoch}/{self.run.epochs} {loss:.3f}'


class Waiting(NamedTuple):
    """A run that has not begun in this call, or rests.

    Attributes:
        name: Its name.
        open: Makes the run; None if another process has it.
    """
    name: str
    open: Callable[[], Optional[Job]]


class Speed:
    """Measures how much is computed in a second, since the set of runs changed."""

    def __init__(self) -> None:
        self.macs_per_second: Optional[float] = None
        self.images_per_second = 0.
        self.jobs = 0
        self.restart()

    def restart(self) -> None:
        """Begin anew: other runs are on their way now."""
        self._since, self._macs, self._images = time.monotonic(), 0., 0

    def add(self, job: Job) -> None:
        """Count a step."""
        self._macs += job.cost
        self._images += job.images

    def look(self, jobs: int) -> bool:
        """Measure, if there is enough to measure, the speed of so many runs."""
        seconds = time.monotonic() - self._since
        if seconds < _LOOK_SECONDS or not self._images:
            return False
        self.macs_per_second, self.images_per_second = self._macs / seconds, self._images / seconds
        self.jobs = jobs
        return True


class Pool:
    """Trains runs to the end, so many at once, in order.

    Args:
        waiting: The runs.
        together: How many at once.
        seconds: Time for all: runs that would not end within it are left for another time. None for no limit.
        interrupt: Stops all when requested.
        device: Where they compute.
        report: Takes lines that say how far all are.

    Attributes:
        waiting: Those that have not begun, or rest.
        elsewhere: Those that another process had when their turn came.
        failed: The error of each run that could not go on, by name.
    """

    def __init__(
            self, waiting: Sequence[Waiting], together: int, seconds: Optional[float], interrupt: StopRequest,
            device: str, report: Callable[[str], None] = print,
    ) -> None:
        self.waiting, self.interrupt, self.report = list(waiting), interrupt, report
        self._runs = {run.name: run for run in waiting}
        self.failed: Dict[str, str] = {}
        self.ends = None if seconds is None else time.monotonic() + seconds
        on_gpu = torch.device(device).type == 'cuda'
        # One for each place, so that no two runs ever share one.
        self.streams = [torch.cuda.Stream(device) if on_gpu else None for _ in range(together)]
        # By place, in the order in which they began.
        self.jobs: Dict[int, Job] = {}
        self.elsewhere: List[Waiting] = []
        self.speed = Speed()

    def run(self) -> None:
        """Train.

        Raises:
            OSError: A file cannot be written: all runs rest at the last checkpoint that could be.
        """
        try:
            self._run()
            if self.elsewhere and not self.interrupt.requested and not self._is_late():
                # What another process had may rest by now.
                self.waiting, self.elsewhere = [*self.waiting, *self.elsewhere], []
                self._run()
        finally:
            for place in reversed(list(self.jobs)):
                try:
                    self._rest(place, self.interrupt.requested or 'time')
                except OSError as error:
                    self.report(f'error: {error}')

    def _run(self) -> None:
        """Train what waits, until nothing is left that has time."""
        reported = time.monotonic()
        self._fill()
        while self.jobs and not self.interrupt.requested and not self._is_late():
            self._turn()
            if self.speed.look(len(self.jobs)):
                self._trim()
                if time.monotonic() - reported >= _REPORT_SECONDS:
                    reported = time.monotonic()
                    self.report(self._progress())

    def _turn(self) -> None:
        """Let each run take a step."""
        for place, job in list(self.jobs.items()):
            was_cold = job.is_cold
            try:
                goes_on = job.step()
            except OSError:
                # Such as a full disk, which is one for all runs.
                del self.jobs[place]
                job.drop()
                raise
            except RUN_ERRORS as error:
                self.failed[job.name] = message_of(error)
                goes_on = False
            if not goes_on:
                del self.jobs[place]
                job.drop()
                self.report(f'{job.name}: {self.failed.get(job.name, "has ended")}')
                self._fill()
            if was_cold or not goes_on:
                self.speed.restart()
            else:
                self.speed.add(job)

    def _fill(self) -> None:
        """Begin runs where there is a place for one, and time."""
        for place, stream in enumerate(self.streams):
            if place in self.jobs:
                continue
            job = self._open_next()
            if job is None:
                return
            if not self._fit([*self.jobs.values(), job]):
                job.close()
                return
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream(stream.device))
                job.stream = stream
            self.jobs[place] = job
            del self.waiting[0]

    def _open_next(self) -> Optional[Job]:
        """Open the first run that can begin, which is the first that waits then."""
        while self.waiting:
            waiting = self.waiting[0]
            try:
                job = waiting.open()
                if job is not None:
                    return job
                self.elsewhere.append(waiting)
            except OSError:
                raise
            except RUN_ERRORS as error:
                self.failed[waiting.name] = message_of(error)
                self.report(f'{waiting.name}: {self.failed[waiting.name]}')
            del self.waiting[0]
        return None

    def _fit(self, jobs: Sequence[Job]) -> bool:
        """Whether runs would end in time, at the speed that was measured last; before, any would."""
        if self.ends is None or self.speed.macs_per_second is None:
            return True
        return self._seconds(jobs) <= _SHARE * (self.ends - time.monotonic())

    def _seconds(self, jobs: Sequence[Job]) -> float:
        """Time to the end of all. The longest may be alone at last, when it does not fill a GPU as many do."""
        assert self.speed.macs_per_second is not None, 'not measured yet'
        left = [job.left for job in jobs]
        return max(sum(left), max(left) * min(_FILLING, self.speed.jobs)) / self.speed.macs_per_second

    def _is_late(self) -> bool:
        return self.ends is not None and time.monotonic() >= self.ends

    def _trim(self) -> None:
        """Let the last runs rest while not all would end in time; the first goes as far as it can."""
        while len(self.jobs) > 1 and not self._fit(list(self.jobs.values())):
            self._rest(next(reversed(self.jobs)), 'time')
            self.speed.restart()

    def _rest(self, place: int, reason: str) -> None:
        job = self.jobs.pop(place)
        try:
            rests = job.stop(reason)
        except OSError:
            raise
        except RUN_ERRORS as error:
            self.failed[job.name] = message_of(error)
            self.report(f'{job.name}: {self.failed[job.name]}')
            return
        if rests:
            self.report(f'{job.name}: paused after {job.run.state.epoch} of {job.run.epochs} epochs')
            self.waiting.insert(0, self._runs[job.name])

    def _progress(self) -> str:
        seconds = round(self._seconds(list(self.jobs.values())))
        return (
            f'{self.speed.images_per_second:,.0f} images/s, {seconds // 60}:{seconds % 60:02d} to the end of '
            f'{len(self.jobs)} runs, {len(self.waiting)} wait: '
            f'{"; ".join(job.describe() for job in self.jobs.values())}'
        )
