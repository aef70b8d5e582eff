"""What a node has of something, shared between the connections of its clients.

A connection may hold as much as is still free: one alone holds half of all, of ten each holds an eleventh. So something
is left for one that has nothing, however much others ask for. When many have taken all, one that has nothing still gets
a little, up to half as much again as there should be.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from raftkv.clock import wait

if TYPE_CHECKING:
    from raftkv.clock import Clock


class Shares:
    """``limit`` of something (bytes, calls, streams); connections go by their peer's address. ``least``: the little."""

    def __init__(self, limit: int, clock: Clock, least: int = 0) -> None:
        self.limit = limit
        self._least = least
        self._clock = clock
        self.held = 0
        """By all connections together; over the limit after :meth:`take` without room."""
        self._parts: dict[str, int] = {}
        self._waiting: deque[tuple[str, int, Callable[[], None]]] = deque()
        self._waiters: dict[str, int] = {}
        self._due = False

    def room(self, peer: str) -> int:
        """How much more ``peer`` may take now; zero or less: nothing. Nothing, too, while it waits for something."""
        return 0 if peer in self._waiters else self._free(peer)

    def _free(self, peer: str) -> int:
        part = self._parts.get(peer, 0)
        free = self.limit - self.held - part
        return max(free, self._least) if not part and self.held < self.limit * 3 // 2 else free

    def take(self, peer: str, amount: int) -> None:
        """``peer`` holds so much more, or less if it is negative. Not refused: whoever can wait asks for room first."""
        left = self._parts.get(peer, 0) + amount
        if left:
            self._parts[peer] = left
        else:
            self._parts.pop(peer, None)
        self.held += amount
        if amount < 0 and self._waiting and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._wake)

    @property
    def waiting(self) -> bool:
        """Somebody waits for room."""
        return bool(self._waiting)

    def wait(self, peer: str, amount: int, resume: Callable[[], None]) -> None:
        """Call ``resume`` once, as soon as ``peer`` may take ``amount``; in the order in which they came."""
        self._waiting.append((peer, amount, resume))
        self._waiters[peer] = self._waiters.get(peer, 0) + 1
        if self._free(peer) >= amount and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._wake)

    async def acquire(self, peer: str, amount: int, timeout: float) -> bool:
        """Take ``amount`` once there is room for it. False if there was none within ``timeout`` seconds."""
        if self.room(peer) >= amount:
            self.take(peer, amount)
            return True
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def resume() -> None:
            if not taken.done():
                self.take(peer, amount)
                taken.set_result(None)

        self.wait(peer, amount, resume)
        try:
            return await wait(self._clock, taken, timeout)
        except asyncio.CancelledError:
            if taken.done():
                self.take(peer, -amount)
            raise
        finally:
            taken.cancel()

    def _wake(self) -> None:
        self._due = False
        waiting, self._waiting = self._waiting, deque()
        late: set[str] = set()
        for peer, amount, resume in waiting:
            if peer in late or self._free(peer) < amount:
                # What the same connection has asked for later does not overtake it.
                late.add(peer)
                self._waiting.append((peer, amount, resume))
                continue
            self._waiters[peer] -= 1
            if not self._waiters[peer]:
                del self._waiters[peer]
            resume()
