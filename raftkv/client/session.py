"""Client ids and sequence numbers: what makes a retried write take effect once. Pure.

A write keeps its (client id, sequence) through all attempts on all nodes; the state machine remembers results by it.
"""

from __future__ import annotations

from random import Random
from typing import Final

from raftkv.commands.client_ids import TAIL_BYTES, client_id, drawn_at

MAX_RENEWALS: Final = 4
"""Sessions that a write tries. Two are enough for a client with a wrong clock; slots may differ in what they refuse."""

_KEPT: Final = 4
"""Latest sessions that may be used again: for slots that refuse the newest one."""


class ClientSession:
    """Numbers of the writes under one client id. ``time``: when the id was drawn, in milliseconds of Unix time."""

    __slots__ = ("_first", "_next", "_open", "id", "time")

    def __init__(self, client: bytes) -> None:
        self.id = client
        self.time = drawn_at(client)
        self._next = 1
        self._first = 1
        self._open: set[int] = set()

    def begin(self) -> int:
        """The next sequence number; open until :meth:`end`."""
        number = self._next
        self._next = number + 1
        self._open.add(number)
        return number

    def end(self, number: int) -> None:
        """The client no longer waits for ``number``, whatever became of it."""
        self._open.discard(number)

    def first_incomplete(self) -> int:
        """The lowest number still waited for, or the next one."""
        first = self._first
        while first < self._next and first not in self._open:
            first += 1
        self._first = first
        return first


class Sessions:
    """The session for new writes, replaced when a slot does not take it.

    A slot takes no new client whose id is from before some time, nor one far ahead of the time. So its refusal says at
    which time an id is to be drawn; the client's own clock, which may be wrong, is asked only for the first one.
    """

    def __init__(self, wall_ms: int, rng: Random) -> None:
        self._rng = rng
        self.current = self._draw(wall_ms)
        self._latest = [self.current]

    def renew(self, refused: ClientSession, time_ms: int, renewals: int) -> ClientSession:
        """A session other than ``refused``, which a slot did not take: it would take one drawn at ``time_ms``.

        ``renewals`` counts how often the write has been refused before. Only for a write none of whose attempts may
        have taken effect: under a new id it is a new write.
        """
        found = None
        if not renewals:
            # Writes that were refused together share one session, and slots that differ do not make one each time.
            others = (one for one in self._latest if one is not refused)
            if refused.time < time_ms:
                found = next((one for one in others if one.time >= time_ms), None)
            else:
                found = next((one for one in others if one.time <= time_ms), None)
        if found is None:
            found = self._draw(time_ms or refused.time + 1)
            self._latest = [found, *self._latest[: _KEPT - 1]]
        self.current = found
        return found

    def _draw(self, time_ms: int) -> ClientSession:
        return ClientSession(client_id(time_ms, self._rng.randbytes(TAIL_BYTES)))
