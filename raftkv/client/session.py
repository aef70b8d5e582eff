"""Client ids and sequence numbers: what makes a retried write take effect once. Pure.

A write keeps its (client id, sequence) through all attempts on all nodes; the state machine remembers results by it.
"""

from __future__ import annotations

from random import Random
from typing import Final

_RANDOM_BYTES: Final = 10
_MAX_MS: Final = (1 << 48) - 1
JUMPS_MS: Final = (1, 1_000, 3_600_000, 86_400_000)
"""Time part of a new client id beyond the refused one's. A slot refuses unknown ids up to a floor that the client does
not know; the floor may come from a client with a fast clock."""


def client_id(wall_ms: int, rng: Random) -> bytes:
    """16 bytes: 48 bits of milliseconds of Unix time, big-endian, and 80 random bits."""
    return max(0, min(wall_ms, _MAX_MS)).to_bytes(6, "big") + rng.randbytes(_RANDOM_BYTES)


class Session:
    """Numbers of the writes under one client id."""

    __slots__ = ("_first", "_next", "_open", "id")

    def __init__(self, client: bytes) -> None:
        self.id = client
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
    """The session for new writes, replaced when the store has forgotten it."""

    def __init__(self, wall_ms: int, rng: Random) -> None:
        self._rng = rng
        self.current = Session(client_id(wall_ms, rng))

    def renew(self, refused: Session, wall_ms: int, renewals: int) -> Session:
        """A session other than ``refused``; ``renewals`` counts how often the write has been refused before.

        Only for a write none of whose attempts may have taken effect: under a new id it is a new write.
        """
        if self.current is refused:
            old = int.from_bytes(refused.id[:6], "big")
            jump = JUMPS_MS[min(renewals, len(JUMPS_MS) - 1)]
            self.current = Session(client_id(max(wall_ms, old + jump), self._rng))
        return self.current
