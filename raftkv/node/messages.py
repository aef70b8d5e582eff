"""Messages between nodes that are not Raft's: arrays whose first item is a word instead of a group's number.

``["op", number, timeout in ms, [operation, ...]]`` asks the receiver to execute operations;
``["re", [[number, index, result], ...]]`` brings results; ``["epoch", epoch, digest]`` says which map the sender has;
``["map", map]`` brings one; ``["leads", [group, ...]]`` says which
groups the sender leads; ``["room", disk, memory]`` which of its disk and memory are full; ``["left"]`` reminds the
receiver of replicas that it has to drop.
"""

from __future__ import annotations

from collections.abc import Container
from itertools import product
from typing import Any, Final

from raftkv import limits
from raftkv.store.operations import Op, Result
from raftkv.store.sessions import CLIENT_BYTES

_OPTIONAL: Final[tuple[type, ...]] = (bytes, type(None))
_OP_TYPES: Final[frozenset[tuple[type, ...]]] = frozenset(
    (int, int, bytes, value, int, expected, int, bytes, int, int, int)
    for value, expected in product(_OPTIONAL, repeat=2)
)
_RESULT_TYPES: Final[frozenset[tuple[type, ...]]] = frozenset((int, int, value, int, int, str) for value in _OPTIONAL)
_ANSWER_TYPES: Final[frozenset[tuple[type, ...]]] = frozenset(((int, int, list), (int, int, tuple)))
_CLIENTS: Final = (0, CLIENT_BYTES)
_MAX_CODE: Final = 2**31
_MAX_COUNT: Final = 2**63
_MAX_DETAIL: Final = 64 * 1024
_MAX_GROUPS: Final = 65_536


class Malformed(ValueError):
    """A message that no raftkv node sends."""


def _fits(row: object, types: Container[tuple[type, ...]]) -> bool:
    return isinstance(row, list | tuple) and tuple(map(type, row)) in types


def _rows(value: object) -> Any:
    """``value`` if it is an array, else one that holds nothing well-formed."""
    return value if isinstance(value, list | tuple) else (None,)


def operations(message: list[Any]) -> tuple[int, int, list[Op]]:
    """Number, timeout in ms and operations of an "op" message. Raises Malformed.

    Keys and values may be of any size: see :func:`raftkv.store.operations.within_limits`.
    """
    if len(message) == 4 and type(message[1]) is int and type(message[2]) is int:
        rows = _rows(message[3])
        if all(_fits(row, _OP_TYPES) and len(row[7]) in _CLIENTS for row in rows):
            return message[1], message[2], [Op._make(row) for row in rows]
    raise Malformed("malformed operations")


def answers(message: list[Any]) -> list[tuple[int, int, Result]]:
    """Results of an "re" message. Raises Malformed."""
    if len(message) == 2:
        rows = _rows(message[1])
        if all(_fits(row, _ANSWER_TYPES) and _is_result(row[2]) for row in rows):
            return [(number, index, Result._make(result)) for number, index, result in rows]
    raise Malformed("malformed results")


def _is_result(row: Any) -> bool:
    """Whether it is one that can be passed on to a client: numbers of another size fit into no answer."""
    if tuple(map(type, row)) not in _RESULT_TYPES:
        return False
    code, version, _, ttl, hint, detail = row
    return (
        0 <= code < _MAX_CODE
        and 0 <= version < _MAX_COUNT
        and -1 <= ttl < _MAX_COUNT
        and 0 <= hint < _MAX_CODE
        and len(detail) <= _MAX_DETAIL
    )


def epoch(message: list[Any]) -> tuple[int, bytes]:
    """Epoch and digest of an "epoch" message. Raises Malformed."""
    if len(message) == 3 and type(message[1]) is int and message[1] >= 0 and type(message[2]) is bytes:
        return message[1], message[2]
    raise Malformed("malformed epoch")


def room(message: list[Any]) -> tuple[bool, bool]:
    """Whether disk and memory are full, of a "room" message. Raises Malformed."""
    if len(message) == 3 and type(message[1]) is bool and type(message[2]) is bool:
        return message[1], message[2]
    raise Malformed("malformed room")


def groups(message: list[Any]) -> list[int]:
    """Groups of a "leads" message. Raises Malformed."""
    if len(message) == 2:
        found = _rows(message[1])
        if len(found) <= _MAX_GROUPS and all(type(one) is int for one in found):
            return list(found)
    raise Malformed("malformed groups")


def encoded_map(message: list[Any]) -> bytes:
    """The shard map of a "map" message, still encoded. Raises Malformed."""
    if len(message) == 2 and type(message[1]) is bytes and len(message[1]) <= limits.MAX_MAP_BYTES:
        return message[1]
    raise Malformed("malformed map")
