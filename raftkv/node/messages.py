"""Messages between nodes that are not Raft's: arrays whose first item is a word instead of a group's number.

``["op", number, timeout in ms, [operation, ...]]`` asks the receiver to execute operations;
``["re", [[number, index, result], ...]]`` brings results; ``["epoch", epoch, digest]`` says which map the sender has;
``["map", map]`` brings one; ``["leads", [group, ...]]`` says which
groups the sender leads; ``["left"]`` reminds the receiver of replicas that it has to drop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from raftkv.store.operations import Op, Result

_OP_TYPES: Final = (int, int, bytes, (bytes, type(None)), int, (bytes, type(None)), int, bytes, int, int, int)
_RESULT_TYPES: Final = (int, int, (bytes, type(None)), int, int, str)


class Malformed(ValueError):
    """A message that no raftkv node sends."""


def _fits(row: object, types: Sequence[Any]) -> bool:
    return (
        isinstance(row, list | tuple)
        and len(row) == len(types)
        and all(isinstance(item, kind) for item, kind in zip(row, types, strict=True))
    )


def operations(message: list[Any]) -> tuple[int, int, list[Op]]:
    """Number, timeout in ms and operations of an "op" message. Raises Malformed."""
    if len(message) == 4 and _fits(message[1:3], (int, int)) and isinstance(message[3], list | tuple):
        rows = message[3]
        if all(_fits(row, _OP_TYPES) for row in rows):
            return message[1], message[2], [Op._make(row) for row in rows]
    raise Malformed("malformed operations")


def answers(message: list[Any]) -> list[tuple[int, int, Result]]:
    """Results of an "re" message. Raises Malformed."""
    if len(message) == 2 and isinstance(message[1], list | tuple):
        rows = message[1]
        if all(_fits(row, (int, int, (list, tuple))) and _fits(row[2], _RESULT_TYPES) for row in rows):
            return [(number, index, Result._make(result)) for number, index, result in rows]
    raise Malformed("malformed results")


def epoch(message: list[Any]) -> tuple[int, bytes]:
    """Epoch and digest of an "epoch" message. Raises Malformed."""
    if len(message) == 3 and type(message[1]) is int and type(message[2]) is bytes:
        return message[1], message[2]
    raise Malformed("malformed epoch")


def groups(message: list[Any]) -> list[int]:
    """Groups of a "leads" message. Raises Malformed."""
    if len(message) == 2 and isinstance(message[1], list | tuple) and all(type(one) is int for one in message[1]):
        return list(message[1])
    raise Malformed("malformed groups")
