"""A worker whose jobs run when the test or the simulator says so."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from faults.sim.disk import PowerLoss, SimDisk
from faults.sim.loop import SimLoop, SimProcess

T = TypeVar("T")

_OPERATIONS_CUT: Final = 8
"""A job that a power loss interrupts has done fewer changing operations than this."""


class SimWorker:
    """See :class:`raftkv.storage.fs.Worker`.

    Inline, a job runs within ``submit`` (one that is submitted meanwhile after it). Else it waits for :meth:`begin`
    and :meth:`complete`; ``submitted`` is called for each, so that a simulator can schedule them.
    """

    def __init__(self, inline: bool = True, submitted: Callable[[], None] | None = None) -> None:
        self.inline = inline
        self._submitted = submitted
        self._jobs: deque[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = deque()
        self._running = False
        self._begun = False

    @property
    def waiting(self) -> int:
        """Jobs that are not complete."""
        return len(self._jobs)

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        self._jobs.append((work, done))
        if self._submitted is not None:
            self._submitted()
        if self.inline and not self._running:
            self.drain()

    def drain(self) -> None:
        """Complete all jobs, also those that they submit."""
        self._running = True
        try:
            while self._jobs:
                self.complete()
        finally:
            self._running = False

    def begin(self) -> bool:
        """The oldest job is under way: a power loss finds it half done. False if there is none."""
        self._begun = bool(self._jobs)
        return self._begun

    def complete(self) -> None:
        """The oldest job ends and its ``done`` is called. Its effects are visible from now on."""
        work, done = self._jobs.popleft()
        self._begun = False
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 (it is handed to done)
            failure = error
        done(result, failure)

    def interrupt(self, disk: SimDisk, rng: random.Random) -> None:
        """Just before ``disk.crash``: do a part of the job under way, forget all jobs."""
        if self._begun:
            disk.power_off_after(rng.randrange(_OPERATIONS_CUT))
            with contextlib.suppress(PowerLoss, Exception):  # nobody is left to be told
                self._jobs[0][0]()
        self._jobs.clear()
        self._begun = False


class TimedWorker(SimWorker):
    """Each job takes ``duration()`` seconds of the loop's time; its end is a callback of ``process``."""

    def __init__(self, loop: SimLoop, process: SimProcess, duration: Callable[[], float]) -> None:
        super().__init__(inline=False, submitted=self._look)
        self._loop = loop
        self._process = process
        self._duration = duration
        self._busy = False

    def _look(self) -> None:
        if not self._busy and self.begin():
            self._busy = True
            self._loop.call_at(self._loop.time() + self._duration(), self._end, context=self._process.context)

    def _end(self) -> None:
        self._busy = False
        try:
            self.complete()
        finally:
            self._look()
