"""Operations and results: one pair of shapes from the front end through forwarding and the log to the state machine.

Both are named tuples, so msgpack carries them as arrays in frames between nodes and in log entries.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from raftkv import limits

MAX_GROUP_TIME: Final = 2**60
"""Milliseconds; a later time is refused, so that times and expiries always fit into 64 bits."""

MAX_TTL_MS: Final = limits.MAX_TTL * 1000
MAX_COUNT: Final = 2**62
"""Of request numbers, versions, ids of moves."""

MAX_EXPIRES: Final = 2**61
"""Milliseconds; no record expires later."""


class Kind(IntEnum):
    """What an operation does. Numbers are part of the log's format and never reused."""

    GET = 0
    PUT = 1
    DELETE = 2
    CAS = 3
    SCAN = 4
    # Replicated housekeeping of a group, proposed by its leader.
    TICK = 10
    GENESIS = 11
    # Commands of the meta group. META_STATE is a read.
    MAP_INIT = 20
    META = 21
    META_STATE = 22
    # Steps of a slot move at its target, at its source; MOVE_STATE and EXPORT are reads.
    IMPORT_BEGIN = 30
    IMPORT_CHUNK = 31
    IMPORT_FINAL = 32
    ACTIVATE = 33
    IMPORT_DROP = 34
    TRACK = 35
    FREEZE = 36
    RELEASE = 37
    UNTRACK = 38
    MOVE_STATE = 40
    EXPORT = 41
    SUMMARY = 42
    # Every replica computes its digest as of this entry.
    CHECK = 45
    # Membership of a group, answered by its leader: MEMBERS is a read.
    MEMBERS = 50
    CHANGE_MEMBERS = 51
    TRANSFER = 52


class Mode(IntEnum):
    """Consistency of a read."""

    LINEARIZABLE = 0
    QUORUM = 1
    STALE = 2


READS: Final = frozenset((Kind.GET, Kind.SCAN))
"""Kinds that read a record or records."""

WRITES: Final = frozenset((Kind.PUT, Kind.DELETE, Kind.CAS))
"""Kinds that change a record; those of one client are executed once."""

GROUP_READS: Final = frozenset((Kind.META_STATE, Kind.MOVE_STATE, Kind.EXPORT, Kind.SUMMARY, Kind.MEMBERS))
"""Questions to a group as a whole."""

GROUP_KINDS: Final = frozenset(kind for kind in Kind if kind >= Kind.META)
"""Kinds that speak to a group as a whole: its leader executes them; never a client's operation."""

ANY_VERSION: Final = -1
"""``Op.expect`` of an unconditional write."""

ABSENT_VERSION: Final = 0
"""``Op.expect`` of a write that wants the key to be absent; also the version reported for an absent record."""


class Op(NamedTuple):
    """One operation.

    ``expect``: version wanted by a conditional PUT or DELETE. ``expected``: value wanted by CAS, None = absent.
    ``ttl``: milliseconds, 0 = for ever. ``client``, ``seq``, ``first``: request id (16 bytes, number, first number that
    the client still waits for); ``client`` empty for reads. ``mode``: of reads. A SCAN reads the records of ``slot``
    whose keys are greater than ``key``, up to ``ttl`` bytes. Kinds from META on speak to a group: ``slot`` is its id,
    ``value`` carries msgpack.
    """

    kind: int
    slot: int
    key: bytes
    value: bytes | None = None
    expect: int = ANY_VERSION
    expected: bytes | None = None
    ttl: int = 0
    client: bytes = b""
    seq: int = 0
    first: int = 0
    mode: int = 0


def within_limits(op: Op) -> bool:
    """Whether its sizes are those that clients' requests are held to, and the nodes' own keep to."""
    largest = limits.MAX_BATCH_BYTES if op.kind in GROUP_KINDS else limits.MAX_VALUE_BYTES
    return (
        len(op.key) <= limits.MAX_KEY_BYTES
        and len(op.value or b"") <= largest
        and len(op.expected or b"") <= limits.MAX_VALUE_BYTES
    )


class Result(NamedTuple):
    """Outcome of one operation.

    ``version``: of the record written or read, 0 = absent (DELETE: of the record removed, 0 = there was none). Of
    SESSION_EXPIRED: when to draw the next client id, in ms of Unix time, 0 = not told.
    ``ttl``: milliseconds left, -1 = for ever; of OVERLOADED: until it is worth asking again, -1 = not known, 0 = ask at
    once for less. ``hint``: node believed to lead the slot's group, 0 = none.
    """

    code: int
    version: int = 0
    value: bytes | None = None
    ttl: int = -1
    hint: int = 0
    detail: str = ""
