"""What calls of the client take and return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeAlias

from msgspec import Struct

from raftkv.client.cursors import Cursor, Trail
from raftkv.codecs import V

if TYPE_CHECKING:
    from raftkv.api.status import NodeStatus

Consistency: TypeAlias = Literal["linearizable", "quorum", "stale"]
"""How fresh a read is.

``linearizable``: sees every write acknowledged before it started. ``quorum``: the same, confirmed by a majority
whatever the nodes are configured for. ``stale``: from any replica, may be old."""

ABSENT: Final = 0
"""``if_version=ABSENT``: only if there is no record of the key."""


class Record(NamedTuple, Generic[V]):
    """A record as it was read; ``value``: bytes, or what the client's codec makes of them.

    ``version`` is never reused for the key. ``expires_at``: Unix time in seconds by this machine's clock, None = never.
    """

    key: bytes
    value: V
    version: int
    expires_at: float | None = None


class WriteResult(NamedTuple):
    """``version``: the version that the write gave to the record."""

    version: int


class CasResult(NamedTuple):
    """What a compare-and-swap came to; true exactly if it was done.

    ``version``: the one that it gave to the record; if it was not done, the record's own, 0 = there is none.
    """

    succeeded: bool
    version: int

    def __bool__(self) -> bool:
        return self.succeeded


class AppendResult(NamedTuple):
    """``length``: of the value after the append, in bytes. ``version``: that the append gave to the record."""

    length: int
    version: int


class TransactionResult(NamedTuple):
    """What a transaction came to; true exactly if its checks held.

    ``results``: of the operations that took effect, in their order: a WriteResult of a put, whether there was a record
    of a delete, the counter after an incr, the Record or None of a get. ``number``: mutations of the slot so far.
    """

    succeeded: bool
    results: tuple[Any, ...]
    number: int

    def __bool__(self) -> bool:
        return self.succeeded


EventType: TypeAlias = Literal["put", "delete", "expire", "image", "initial", "whole", "live"]
"""What an event of a watch tells.

``put``, ``delete``, ``expire``: happened to the key's record. ``image``: an image of the event's slot begins; what came
of an earlier one counts no more. ``initial``: a record of it. ``whole``: it is complete; what is not in it is not
there. ``live``: all that was acknowledged before the watch was opened has come."""


class WatchEvent(Struct, Generic[V], frozen=True):
    """``value``: that was written, of a put or an initial record; bytes, or what the client's codec makes of them.

    ``version``: of the record, or of its removal: it rises with each event of a slot. ``slot``: the key's, -1 of
    ``live``. ``more``: the next event of this slot is of the same transaction.
    """

    type: EventType
    key: bytes
    value: V | None
    version: int
    slot: int
    more: bool
    _cursor: Cursor | Trail
    """Where the watch was before the event, or before others that came with it."""

    @property
    def token(self) -> str:
        """``watch(start=token)`` goes on behind this event. Made when it is asked for."""
        return self.place.token()

    @property
    def place(self) -> Cursor:
        """Where the watch is after the event."""
        if isinstance(self._cursor, Cursor) and self.type in ("image", "initial", "live"):
            return self._cursor
        return self._cursor.at(self.slot, self.version)


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """What one endpoint said about itself: ``status``, or why it said nothing in ``error``."""

    address: str
    status: NodeStatus | None
    error: str = ""
