"""Commands of entries that carry proposals: a byte that tells them from others, msgpack of [time, operations]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import msgpack

from raftkv.raft.ports import StateMachine
from raftkv.store.operations import Op

_BATCH: Final = b"\x00"
"""The library's own kinds are 1 to 3."""


def is_batch(command: bytes) -> bool:
    """Whether an entry carries proposals."""
    return command[:1] == _BATCH


def pack_batch(time: int, ops: Sequence[Op]) -> bytes:
    """The command of an entry. ``time``: the group's, in ms."""
    return _BATCH + cast(bytes, msgpack.packb((time, ops)))


def unpack_batch(command: bytes) -> tuple[int, Sequence[Sequence[Any]]]:
    """Time and operations. Raises ValueError or TypeError if there are none."""
    time, ops = msgpack.unpackb(command[1:], use_list=False)
    return time, ops


def prepared(machine: StateMachine, command: bytes, ops: Sequence[Op] | None) -> bool:
    """Whether the next entry can be applied without holding up the loop; else ask again in a later turn.

    ``ops``: its operations if they are at hand.
    """
    if not is_batch(command):
        return True
    try:
        return machine.prepare(unpack_batch(command)[1] if ops is None else ops)
    except (ValueError, TypeError):
        # Not to be decoded: applying it says so.
        return True
