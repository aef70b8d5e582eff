"""A record in memory: one bytes object that holds its version, when it expires, and its value.

Not a tuple of the three: the garbage collector would traverse a million tuples, and each copy-on-write copy of a dict
of them, while the loop is blocked; and tuples would take a quarter more memory. The collector does not track dicts of
bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, cast

Record = bytes
"""What :func:`packed` makes."""

_HEAD: Final = Struct("<qq")

VALUE_AT: Final = _HEAD.size
"""Where the value begins."""

pack_head: Final[Callable[[int, int], bytes]] = _HEAD.pack
"""(version, expires) -> the bytes before the value. Raises struct.error for what is no number of 64 bits."""

head: Final = cast(Callable[[Record], tuple[int, int]], _HEAD.unpack_from)
"""Record -> (version, expires). ``expires`` is group time in ms, 0 = never."""


def packed(value: bytes, version: int, expires: int) -> Record:
    """The record of these."""
    return pack_head(version, expires) + value


def fields(record: Record) -> tuple[bytes, int, int]:
    """(value, version, expires)"""
    version, expires = head(record)
    return record[VALUE_AT:], version, expires


def value_bytes(record: Record) -> int:
    """Length of the value."""
    return len(record) - VALUE_AT
