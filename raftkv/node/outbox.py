"""The durability barrier between a node's groups and its links."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol


class _Wal(Protocol):
    appended: int
    durable: int


class _Links(Protocol):
    def send(self, node: int, message: list[Any]) -> None: ...

    def link_number(self, node: int) -> int: ...

    def up(self, node: int) -> bool: ...


class DurableOutbox:
    """Persist before send: a message that speaks of entries, terms or votes waits here for the WAL.

    The WAL is one ordered file, so one number tells what is durable. Messages that wait leave in the order in which
    they came.
    """

    def __init__(self, wal: _Wal, links: _Links) -> None:
        self._wal = wal
        self._links = links
        self._held: deque[tuple[int, int, list[Any]]] = deque()

    def send(self, node: int, message: list[Any]) -> None:
        self._links.send(node, message)

    def send_when_durable(self, node: int, message: list[Any]) -> None:
        if self._wal.durable >= self._wal.appended:
            self._links.send(node, message)
        else:
            self._held.append((self._wal.appended, node, message))

    def on_durable(self, lsn: int) -> None:
        while self._held and self._held[0][0] <= lsn:
            _, node, message = self._held.popleft()
            self._links.send(node, message)

    def link_number(self, node: int) -> int:
        """Number of the link to ``node``, 0 while it is down."""
        return self._links.link_number(node) if self._links.up(node) else 0
