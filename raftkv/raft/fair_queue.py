"""A fair queue of proposals that wait for an entry: the sources take turns, so none waits for all items of another."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """An item of the queue. ``source``: on whose behalf. ``waiting``: False once it was withdrawn."""

    source: int

    @property
    def waiting(self) -> bool: ...


T = TypeVar("T", bound=Waiting)


class FairQueue(Generic[T]):
    """A queue of queues, one for each source; a turn is one item, and each source's items keep their order.

    A source whose queue was empty goes first once, then takes turns with the others (as new flows in FQ-CoDel, RFC
    8290): a source with little to do waits only for the item in progress.
    """

    def __init__(self) -> None:
        self._queues: dict[int, deque[T]] = {}
        self._new: deque[int] = deque()
        self._old: deque[int] = deque()

    def add(self, item: T) -> None:
        queue = self._queues.get(item.source)
        if queue is None:
            queue = self._queues[item.source] = deque()
            self._new.append(item.source)
        queue.append(item)

    def head(self) -> T | None:
        """The next item, None if there is none."""
        while self._queues:
            sources = self._new or self._old
            queue = self._queues[sources[0]]
            while queue and not queue[0].waiting:
                queue.popleft()
            if queue:
                return queue[0]
            source = sources.popleft()
            if sources is self._new:
                # It does not count as new again at once, or a source that comes and goes would always be first.
                self._old.append(source)
            else:
                del self._queues[source]
        return None

    def pop(self) -> None:
        """Take out :meth:`head`, which there must be."""
        source = (self._new or self._old).popleft()
        self._queues[source].popleft()
        self._old.append(source)

    def clear(self) -> Iterator[T]:
        """Take out all."""
        queues, self._queues = self._queues, {}
        self._new.clear()
        self._old.clear()
        return (item for queue in queues.values() for item in queue)
