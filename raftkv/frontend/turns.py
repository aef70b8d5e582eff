"""Who executes clients' operations next: the loop's time, shared fairly between connections.

Each turn of the loop executes a bounded quantum, so that Raft, links, health and administration go on beside any load.
What arrives while nobody waits is executed at once. Else that connection is next which would have used least after its
turn (fair queueing), so a client that asks for little does not wait behind those who ask for much.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from raftkv.clock import Clock

QUANTUM: Final = 256
"""Units for each turn of the loop. A unit is an operation or 4 KiB, some microseconds."""

PATIENCE: Final = 0.002
"""Seconds after which a turn of the loop executes no more, whatever its units took."""

SLICE: Final = 64
"""Units that one stream gets before the next one, while several wait."""

BYTES_PER_UNIT: Final = 4096


class Work(Protocol):
    """Something with operations to execute."""

    peer: str
    """The connection, which has one share however much work it brings."""

    @property
    def wants(self) -> int:
        """About how many units it could use now."""

    def step(self, most: int) -> tuple[int, bool]:
        """Execute about ``most`` units, at least something. Returns the units used, and whether to go on."""


class Turns:
    """The queue of a node's clients."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.now
        self._spent = 0.0
        self._left = QUANTUM
        self._due = False
        self._queue: list[tuple[int, int, int, Work]] = []
        self._numbers = count()
        self._time = 0
        self._used: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def enter(self, work: Work) -> None:
        """Execute ``work``, now if nobody waits."""
        if self._queue or self._left <= 0:
            self.queue(work)
            return
        self._arm()
        self._run(work, self._left)

    def queue(self, work: Work) -> None:
        """Execute ``work`` when its turn comes, in a later turn of the loop."""
        start = max(self._time, self._used.get(work.peer, 0))
        heappush(self._queue, (start + min(work.wants, SLICE), next(self._numbers), start, work))
        self._arm()

    def spend(self, peer: str, units: int) -> None:
        """``peer`` has used ``units`` of the present turn for something else, answers for instance."""
        self._left -= units
        self._used[peer] = max(self._time, self._used.get(peer, 0)) + units
        self._arm()

    def _run(self, work: Work, most: int) -> None:
        started = self._now()
        units, more = work.step(most)
        self._spent += self._now() - started
        if self._spent >= PATIENCE:
            self._left = min(self._left, 0)
        self.spend(work.peer, units)
        if more:
            self.queue(work)

    def _arm(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._due = False
        # What the last turn used too much is paid in this one.
        self._left = QUANTUM + max(min(self._left, 0), -QUANTUM)
        self._spent = 0.0
        queue = self._queue
        if not queue and self._left > 0:
            self._time = 0
            self._used.clear()
            self._left = QUANTUM
            return
        while queue and self._left > 0:
            _, _, start, work = heappop(queue)
            self._time = max(self._time, start)
            self._run(work, min(self._left, SLICE) if queue else self._left)
        self._arm()
