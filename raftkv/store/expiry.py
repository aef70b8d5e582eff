"""When records expire: a priority queue of (expires, slot, key, version)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import Final

Due = tuple[int, int, bytes, int]
"""(expires, slot, key, version). It is stale once the record has another version or is gone."""

_SLACK: Final = 1024
_SWEEP: Final = 4


class ExpiryQueue:
    """Due records in order. A record that is replaced or removed leaves a stale item behind.

    So that these do not pile up, the queue is swept once it is more than half stale: ``_old`` is emptied a few items
    per push, from its end, which leaves the rest a heap, and what is not stale moves to ``_heap``. No push pays for
    all. ``live`` is the number of records that expire; the owner counts it down when one is replaced or removed.
    """

    def __init__(self, is_live: Callable[[Due], bool]) -> None:
        self._is_live = is_live
        self._heap: list[Due] = []
        self._old: list[Due] = []
        self.live = 0

    def restart(self, items: Iterable[Due]) -> None:
        """Begin anew with these items."""
        self._heap = list(items)
        heapify(self._heap)
        self._old = []
        self.live = len(self._heap)

    def extend(self, items: list[Due]) -> None:
        """Add many records that expire."""
        self.live += len(items)
        self.give_back(items)

    def give_back(self, items: list[Due]) -> None:
        """Put in again what was popped and has not been removed."""
        if len(items) < len(self._heap) // 8:
            for item in items:
                heappush(self._heap, item)
        else:
            self._heap += items
            heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap) + len(self._old)

    def push(self, item: Due) -> None:
        """Add a record that expires."""
        self.live += 1
        heappush(self._heap, item)
        if self._old:
            for _ in range(min(_SWEEP, len(self._old))):
                kept = self._old.pop()
                if self._is_live(kept):
                    heappush(self._heap, kept)
        elif len(self._heap) > 2 * self.live + _SLACK:
            self._old, self._heap = self._heap, []

    def first(self) -> int | None:
        """When the next record expires."""
        heap = self._first_heap()
        return heap[0][0] if heap else None

    def pop_due(self, now: int) -> Due | None:
        """Take the first record that has expired by ``now``. The owner removes it and counts it down."""
        heap = self._first_heap()
        return heappop(heap) if heap and heap[0][0] <= now else None

    def _first_heap(self) -> list[Due]:
        for heap in (self._heap, self._old):
            while heap and not self._is_live(heap[0]):
                heappop(heap)
        if not self._old or (self._heap and self._heap[0] < self._old[0]):
            return self._heap
        return self._old
