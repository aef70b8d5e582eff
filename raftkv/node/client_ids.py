"""Client ids at a node: which ones a leader accepts, and the node's own id for writes of clients that have none.

Ids begin with the time when they were drawn, and a slot refuses new ones up to the largest whose session has gone (see
:mod:`raftkv.store.sessions`). So one id far ahead of the time would make the slot refuse all clients whose clocks are
right. The state machine must not ask what time it is; a leader may, before it proposes.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from msgspec.structs import replace

from raftkv import limits
from raftkv.commands.base import Write
from raftkv.commands.client_ids import TAIL_BYTES, client_id, drawn_at
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.store.records import Store

_AHEAD_MS: Final = limits.CLIENT_AHEAD * 1000
_LAST_TAIL: Final = b"\xff" * TAIL_BYTES


class ClientIds:
    """``time`` tells the cluster's time in seconds of Unix time.

    ``latest``: the largest id that is taken without a further look. ``own``: the node's own.
    """

    def __init__(self, time: Callable[[], float], rng: Random) -> None:
        self._time = time
        self._rng = rng
        self._number = 0
        self._open: dict[int, None] = {}
        self.look()
        self.own = self._draw(0)

    def look(self) -> None:
        """Time has passed. Called every second."""
        self.latest = client_id(self._now() + _AHEAD_MS, _LAST_TAIL)

    def refusal(self, op: Write, store: Store) -> Result | None:
        """Why this leader does not propose ``op``, None if it does: its client is new, with an id far ahead."""
        if op.client <= self.latest:
            return None
        floor = store.newcomer_floor(op.slot, op.client)
        if floor is None:
            return None
        # What an earlier leader with another clock let in must not refuse everybody.
        since = max(self._now(), floor + 1)
        if drawn_at(op.client) <= since + _AHEAD_MS:
            return None
        return Result(Code.SESSION_EXPIRED, detail="the client's clock is ahead of the cluster's", new_id_ms=since)

    def dated(self, expired: Result) -> Result:
        """A SESSION_EXPIRED with the time at which the client is to draw its next id."""
        return replace(expired, new_id_ms=max(expired.new_id_ms, self._now()))

    def renew(self, refused: bytes, time_ms: int) -> None:
        """Replace the node's own id ``refused``; one that is drawn at ``time_ms`` will be accepted."""
        if refused == self.own or drawn_at(self.own) < time_ms:
            self.own = self._draw(time_ms)

    def name(self, op: Write) -> Write:
        """``op`` under this node's own id, until it is :meth:`answered`."""
        self._number += 1
        self._open[self._number] = None
        return replace(op, client=self.own, seq=self._number, first=next(iter(self._open)))

    def answered(self, seq: int) -> None:
        """Nobody waits any more for the write that got the number ``seq``."""
        self._open.pop(seq, None)

    def _now(self) -> int:
        # In whole seconds: writes that are refused together hear the same time, and so share one new session.
        return int(self._time()) * 1000

    def _draw(self, time_ms: int) -> bytes:
        return client_id(time_ms or self._now(), self._rng.randbytes(TAIL_BYTES))
