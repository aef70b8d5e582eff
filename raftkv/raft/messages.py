"""Messages between the replicas of a group, as they travel: msgpack arrays ``[group, type, ...]``.

A peer is trusted to run raftkv but not to be free of faults: :func:`check` says whether a message has the right shape.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from raftkv.limits import MAX_COMMAND_BYTES


class Type(IntEnum):
    """Numbers are part of the protocol between nodes and never reused."""

    APPEND = 1
    """term, seq, link number, previous index, previous term, commit index, [[term, command], ...]"""
    ACK = 2
    """term, seq, link number, matches, next index (or hint), last index, [start, counter]"""
    STALE = 3
    """term: the sender of an append is deposed"""
    PREVOTE = 4
    """term that would be campaigned for, last index, last term"""
    PREVOTE_REPLY = 5
    """that term, granted, own term"""
    VOTE = 6
    """term, last index, last term, on request of the leader"""
    VOTE_REPLY = 7
    """term"""
    TIMEOUT_NOW = 8
    """term"""
    SNAPSHOT_OFFER = 9
    """term, index, term of index, size in bytes"""
    SNAPSHOT_PULL = 10
    """term, index, offset"""
    SNAPSHOT_CHUNK = 11
    """term, index, offset, data"""
    HEARD = 12
    """term, seq: an append was heard; says nothing of the log, so it need not wait for the disk"""
    LOST = 13
    """term, index, term of index: the receiver had acknowledged this entry in this term, and does not hold it"""
    BARRED = 14
    """term: the sender has lost entries that it had acknowledged, and does not count"""


ANSWERS: Final = frozenset(
    (Type.ACK, Type.HEARD, Type.STALE, Type.PREVOTE_REPLY, Type.VOTE_REPLY, Type.SNAPSHOT_PULL, Type.BARRED)
)
"""Accepted from members only. Requests are not: the sender may be a member that this replica has not heard of yet."""

OF_ELECTIONS: Final = frozenset((Type.PREVOTE, Type.PREVOTE_REPLY, Type.VOTE, Type.VOTE_REPLY, Type.TIMEOUT_NOW))

OF_SNAPSHOTS: Final = frozenset((Type.SNAPSHOT_PULL, Type.SNAPSHOT_CHUNK))
"""Transfer of snapshots; consensus does not see these."""

APPEND: Final = Type.APPEND
ACK: Final = Type.ACK
"""The two of each write: looking a member of an enumeration up takes longer than comparing with it."""

WAITS: Final = tuple(
    kind in (Type.ACK, Type.STALE, Type.PREVOTE_REPLY, Type.VOTE, Type.VOTE_REPLY, Type.TIMEOUT_NOW, Type.BARRED)
    for kind in range(max(Type) + 1)
)
"""By type: whether a message waits for the disk, since it speaks of entries, terms or votes of its sender. The others
say what a leader has, ask, or hold data that is durable."""

_INT = (int,)
_MAX_INT: Final = 2**62
"""Upper bound of terms, indexes and numbers, far above real ones; adding 1 still fits msgpack's integers."""

_SHAPES: Final[dict[int, tuple[tuple[type, ...], ...]]] = {
    Type.APPEND: (_INT, _INT, _INT, _INT, _INT, _INT, (list, tuple)),
    Type.ACK: (_INT, _INT, _INT, (bool,), _INT, _INT, (list, tuple)),
    Type.STALE: (_INT,),
    Type.PREVOTE: (_INT, _INT, _INT),
    Type.PREVOTE_REPLY: (_INT, (bool,), _INT),
    Type.VOTE: (_INT, _INT, _INT, (bool,)),
    Type.VOTE_REPLY: (_INT,),
    Type.TIMEOUT_NOW: (_INT,),
    Type.SNAPSHOT_OFFER: (_INT, _INT, _INT, _INT),
    Type.SNAPSHOT_PULL: (_INT, _INT, _INT),
    Type.SNAPSHOT_CHUNK: (_INT, _INT, _INT, (bytes,)),
    Type.HEARD: (_INT, _INT),
    Type.LOST: (_INT, _INT, _INT),
    Type.BARRED: (_INT,),
}


def check(message: list[Any]) -> bool:
    """Whether ``message`` (with its group already known to be an int) has the shape of its type."""
    shape = _SHAPES.get(message[1]) if len(message) > 1 and type(message[1]) is int else None
    if shape is None or len(message) != len(shape) + 2:
        return False
    for value, types in zip(message[2:], shape, strict=True):
        if type(value) not in types or (types is _INT and not 0 <= value < _MAX_INT):
            return False
    if message[1] == APPEND:
        return all(
            type(entry) in (list, tuple)
            and len(entry) == 2
            and type(entry[0]) is int
            and 0 <= entry[0] <= message[2]
            and type(entry[1]) is bytes
            and 0 < len(entry[1]) <= MAX_COMMAND_BYTES
            for entry in message[8]
        )
    if message[1] == ACK:
        start = message[8]
        return len(start) == 2 and type(start[0]) is int and type(start[1]) is int
    return True
