"""Memory of a node's process: its limit, when it is too full for new data, and when freed memory is given back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from raftkv.api.status import Problem
from raftkv.clock import Clock

_CLEAR: Final = 0.9
"""The share of the limit below which a memory that was full has room again."""

_SMALL: Final = 96 * 1024 * 1024
"""Bytes below which a process has nothing worth giving back."""

_GROWN: Final = 1.125
"""Memory that has grown so much since freed memory was last given back may be full of holes."""

_PERIOD: Final = 5.0
"""Seconds after which freed memory is given back even if the process has not grown: much may have been deleted."""

_REST: Final = 100
"""Giving memory back blocks the loop: the pause until the next time, as a multiple of the time that it took."""


class ProcessMemory(Protocol):
    """The memory of this process. Sizes in bytes."""

    def total(self) -> int:
        """What the process may take before it is ended; 0 = unknown."""

    def used(self) -> int:
        """What it takes now; 0 = unknown."""

    def release(self) -> None:
        """Give back to the system what was freed and is still kept for later."""


class Memory:
    """Sizes in bytes. ``limit``: 0 = none. ``used``, ``full``: as of the last look."""

    def __init__(self, process: ProcessMemory, clock: Clock, limit: int | None) -> None:
        self._process = process
        self._clock = clock
        self.used = 0
        self.full = False
        self._released = 0
        self._due = self._rested = float("-inf")
        self.configure(limit)

    def configure(self, limit: int | None) -> None:
        """``limit``: above it no new data is taken; 0 = none, None = half of what the process may take."""
        self.limit = self._process.total() // 2 if limit is None else limit

    def look(self) -> None:
        """Called about once a second."""
        self.used = self._process.used()
        now = self._clock.now()
        due = now >= self._due or self.used > _GROWN * self._released
        if due and now >= self._rested and self.used >= _SMALL:
            self._release()
        self.full = 0 < self.limit <= self.used / (_CLEAR if self.full else 1.0)

    def _release(self) -> None:
        began = self._clock.now()
        self._process.release()
        now = self._clock.now()
        self._due, self._rested = now + _PERIOD, now + _REST * (now - began)
        self.used = self._released = self._process.used()

    def problems(self) -> Iterator[Problem]:
        """Whether the memory is full."""
        if self.full:
            told = f"its process takes {self.used:,} bytes of memory, node.memory allows {self.limit:,}"
            yield Problem("memory", f"{told}: its groups take no new data")
