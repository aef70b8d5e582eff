"""msgpack for state machines: whatever bytes arrive, the only error is ValueError."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgpack

from raftkv import limits


def pack(value: object) -> bytes:
    """Encode plain values."""
    return cast(bytes, msgpack.packb(value))


def pack_each(values: Iterable[object]) -> bytes:
    """Plain values one after the other: behind :func:`array_header`, the array of them."""
    packer = msgpack.Packer(use_bin_type=True, autoreset=False)
    for value in values:
        packer.pack(value)
    return cast(bytes, packer.bytes())


def array_header(length: int) -> bytes:
    """How an array of so many values begins."""
    return cast(bytes, msgpack.Packer().pack_array_header(length))


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


def counting(size: int) -> dict[str, Any]:
    """Arguments for msgpack's unpackers: decoding ``size`` bytes to more than MAX_DECODED_ITEMS items is a ValueError.

    No byte makes two items, so what is shorter is not counted and costs nothing.
    """
    if size <= limits.MAX_DECODED_ITEMS:
        return {}
    left = limits.MAX_DECODED_ITEMS

    def count(items: Any) -> Any:
        nonlocal left
        left -= 1 + len(items)
        if left < 0:
            raise ValueError(f"more than {limits.MAX_DECODED_ITEMS} items")
        return items

    return {"list_hook": count, "object_pairs_hook": lambda pairs: dict(count(pairs))}


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


def text(value: object) -> str:
    """``value`` if it is text. Raises ValueError otherwise."""
    if type(value) is not str:
        raise ValueError("text is missing")
    return value
