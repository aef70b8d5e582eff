"""What every run has, whatever it drives: clients that work, probes, convergence, the last look, the judgement."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from faults.check.history import History
from faults.check.problem import CheckProblem
from faults.driver import Driver
from faults.verdict import LAST, LATE, Judgement, judge
from faults.workloads.kinds import WORKLOADS, Workload
from faults.workloads.look import LAST_TIMEOUT, look_at_everything
from faults.workloads.probe import Probe
from faults.workloads.recorder import OperationListener, Recorder
from raftkv import AsyncClient

_TASKS: Final = "abcdef"
_AGAIN: Final = 0.1
_STEP: Final = 6
"""Calls of the longest step of a workload."""

_LONGEST_LOOK: Final = 600.0


@dataclass(frozen=True, slots=True)
class ClientWork:
    """What clients do. Times in seconds.

    ``tasks``: of each client, which share it. ``timeout``: of its calls; ``late``: by how much they may outlast it.
    ``pause``: usual time between two steps of a task. ``cancels``: share of the writes that are given up by cancelling
    them. ``operations``: after so many the work is done.
    """

    seed: int
    workloads: tuple[str, ...]
    tasks: int
    timeout: float
    pause: float
    cancels: float
    late: float = LATE
    operations: float = float("inf")


class Course:
    """``now``: true time in seconds. ``report(kind, text)`` is told of what is wrong, ``listener`` of operations.

    ``over``: whether clients and probes come to an end.
    """

    def __init__(
        self,
        driver: Driver,
        work: ClientWork,
        history: History,
        now: Callable[[], float],
        report: Callable[[str, str], None],
        listener: OperationListener | None = None,
    ) -> None:
        self.over = False
        self.workloads: list[Workload] = [WORKLOADS[name]() for name in work.workloads]
        self.probes: list[Probe] = []
        self._driver = driver
        self._work = work
        self._history = history
        self._now = now
        self._report = report
        self._listener = listener
        self._clients: dict[str, AsyncClient] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # -- clients

    def begin(self) -> None:
        """All clients work from now on."""
        for number, name in enumerate(self._driver.clients):
            client = self._clients[name] = self._driver.client(name, self._work.timeout)
            workload = self.workloads[number % len(self.workloads)]
            for letter in _TASKS[: self._work.tasks]:
                self._tasks.append(self._driver.spawn(name, self._task(client, name + letter, workload)))

    async def _task(self, client: AsyncClient, label: str, workload: Workload) -> None:
        work, rng = self._work, random.Random(f"{label} {self._work.seed}")

        def patience() -> float | None:
            return rng.uniform(0.0, 0.5) if rng.random() < work.cancels else None

        recorder = self._recorder(client, label, patience, work.timeout)
        while not self.over and len(self._history.operations) < work.operations:
            await workload.step(recorder, rng)
            await asyncio.sleep(rng.expovariate(1.0 / work.pause))

    def probe(self, keys: Iterable[str], period: float) -> None:
        """Write to each key all the time, by clients that are never cut off, ``period`` seconds apart."""
        for number, key in enumerate(keys):
            name = f"p{number}"
            client = self._clients[name] = self._driver.client(name, LAST_TIMEOUT)
            probe = Probe(self._recorder(client, name), key, self._now, period)
            self.probes.append(probe)
            self._tasks.append(self._driver.spawn(name, probe.write(lambda: self.over)))

    async def end(self) -> None:
        """Clients and probes come to an end, in time."""
        self.over = True
        longest = max(_STEP * self._work.timeout, LAST_TIMEOUT if self.probes else 0.0) + _STEP * self._work.late
        _, hanging = await asyncio.wait(self._tasks, timeout=longest)
        if hanging:
            self._report("client", f"{len(hanging)} tasks hang")
        for task in self._tasks:
            if task not in hanging and (problem := task.exception()) is not None:
                self._report("client", f"a task raised {problem!r}")
        closing = [self._driver.spawn(name, client.close()) for name, client in self._clients.items()]
        _, open_ = await asyncio.wait(closing, timeout=self._work.late)
        if open_:
            self._report("client", f"{len(open_)} clients do not close")

    def _recorder(
        self,
        client: AsyncClient,
        name: str,
        patience: Callable[[], float | None] = lambda: None,
        scans: float | None = None,
    ) -> Recorder:
        return Recorder(client, name, self._history, self._now, patience, self._listener, scans)

    # -- after the faults

    async def converge(self, patience: float) -> float:
        """All replicas are equal within so many seconds; how many it took."""
        began, apart = self._now(), "nobody has looked"
        while self._now() < began + patience:
            apart = await self._driver.unsettled()
            if not apart:
                return self._now() - began
            await asyncio.sleep(_AGAIN)
        self._report("convergence", f"not after {patience:g} s: {apart}")
        return self._now() - began

    async def last_look(self, fresh: Sequence[str], at_once: int = 1) -> list[tuple[str, CheckProblem]]:
        """A new client writes to the ``fresh`` keys, reads every key, ``at_once`` at a time, and scans all there is.

        What the workloads find wrong, each with its name.
        """
        if not fresh:
            self._report("liveness", "no node says who has which slots, so nothing can be asked for")
            return []
        last = self._recorder(self._driver.client(LAST, LAST_TIMEOUT), LAST)
        looking = self._driver.spawn(
            LAST, look_at_everything(last, self._history, fresh, self.workloads, self._report, at_once)
        )
        done, _ = await asyncio.wait([looking], timeout=_LONGEST_LOOK)
        if not done:
            looking.cancel()
            self._report("client", "the last look hangs")
        elif (problem := looking.exception()) is not None:
            self._report("client", f"the last look failed: {problem!r}")
        else:
            return looking.result()
        return []

    def judge(self, **how: Any) -> Judgement:
        """What the history says; ``how``: see :func:`faults.verdict.judge`."""

        def timeout(client: str) -> float:
            return self._work.timeout if client[0] == "c" else LAST_TIMEOUT

        return judge(self._history, timeout=timeout, late=self._work.late, **how)
