"""msgpack for state machines: whatever bytes arrive, the only error is ValueError."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgpack


def pack(value: object) -> bytes:
    """Encode plain values."""
    return cast(bytes, msgpack.packb(value))


def unpack(data: bytes) -> Any:
    """Decode exactly one value. Raises ValueError for anything else."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (TypeError, OverflowError, msgpack.UnpackException) as problem:
        raise ValueError(str(problem)) from problem


def unpack_all(data: bytes) -> Iterator[Any]:
    """Decode values written one after the other. Raises ValueError, possibly after some of them."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=len(data) + 1)
    try:
        unpacker.feed(data)
        yield from unpacker
    except (TypeError, OverflowError, msgpack.UnpackException) as problem:
        raise ValueError(str(problem)) from problem
    if unpacker.tell() != len(data):
        raise ValueError("the last value is cut off")


def whole(value: object) -> int:
    """``value`` if it is a number. Raises ValueError otherwise."""
    if type(value) is not int:
        raise ValueError("a number is missing")
    return value


def binary(value: object) -> bytes:
    """``value`` if it is bytes. Raises ValueError otherwise."""
    if type(value) is not bytes:
        raise ValueError("bytes are missing")
    return value
