"""Messages that come again: what one host sent to one address, by kind, for as long as a harsh network may keep it.

Drawn evenly, nearly all of them would be appends and acknowledgements of the last moment, which harm nobody. So the
kind is drawn first, then how many of that kind ago it was sent: some come again at once, some after a whole term.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from typing import Final

_REMEMBERED: Final = 512
"""Sendings of one kind from one host to one address."""


class Repeats:
    """A kind is any number: what tells apart sendings of which each sort should come again equally often."""

    def __init__(self) -> None:
        self._connection: object = None
        self._current: dict[int, deque[bytes]] = {}
        self._former: dict[int, deque[bytes]] = {}

    def draw(self, connection: object, share: float, rng: random.Random) -> bytes | None:
        """In that share of calls something that was sent over a former connection, if anything was."""
        if connection is not self._connection:
            self._connection = connection
            for kind, sent in self._current.items():
                _of(self._former, kind).extend(sent)
            self._current.clear()
        if not self._former or rng.random() >= share:
            return None
        sent = self._former[rng.choice(list(self._former))]
        return sent[-int(len(sent) ** rng.random())]  # the latest ones as often as much older ones

    def remember(self, kinds: Iterable[int], data: bytes) -> None:
        """``data`` was sent over the connection of the latest draw."""
        for kind in kinds:
            _of(self._current, kind).append(data)


def _of(sent: dict[int, deque[bytes]], kind: int) -> deque[bytes]:
    return sent.setdefault(kind, deque(maxlen=_REMEMBERED))
