"""Entries that carry proposals: a byte that tells them from others, then time and commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from raftkv.commands.base import Command
from raftkv.commands.registry import decode_entry, encode_entry
from raftkv.raft.ports import StateMachine

_BATCH: Final = b"\x00"
"""The library's own kinds are 1 to 3."""


def is_batch(command: bytes) -> bool:
    """Whether an entry carries proposals."""
    return command[:1] == _BATCH


def pack_batch(time: int, ops: Sequence[Command]) -> bytes:
    """The entry. ``time``: the group's, in ms."""
    return _BATCH + encode_entry(time, ops)


def unpack_batch(command: bytes) -> tuple[int, Sequence[Command]]:
    """Time and operations. Raises ValueError if there are none."""
    return decode_entry(encoded(command))


def encoded(command: bytes) -> memoryview:
    """The same as the command holds them."""
    return memoryview(command)[1:]


def is_readable(command: bytes) -> bool:
    """Whether every replica can decode an entry with proposals."""
    try:
        unpack_batch(command)
    except ValueError:
        return False
    return True


def prepared(machine: StateMachine, command: bytes, ops: Sequence[Command] | None) -> bool:
    """Whether the next entry can be applied without blocking the event loop. If not, ask again in a later turn.

    ``ops``: its operations if they are at hand.
    """
    if not is_batch(command):
        return True
    try:
        return machine.prepare(unpack_batch(command)[1] if ops is None else ops)
    except ValueError:
        # Not to be decoded: applying it says so.
        return True
