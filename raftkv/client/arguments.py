"""The arguments of calls, checked before anything is sent: with the server's own limits and errors. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import shards.slots
from raftkv.client.types import Consistency
from raftkv.commands.bounds import (
    ANY_VERSION,
    MAX_DELTA,
    MIN_DELTA,
    Mode,
    behind,
    check_bound,
    check_key,
    check_ttl,
    check_value,
)
from raftkv.errors import InvalidArgument
from raftkv.limits import MAX_BOUND_BYTES, MAX_KEY_BYTES, MAX_TIMEOUT, MAX_TTL, MAX_VALUE_BYTES, MIN_TIMEOUT
from raftkv.text import shown

MODES: Final[dict[str, int]] = {mode.name.lower(): int(mode) for mode in Mode}

BEYOND: Final = b"\xff" * MAX_BOUND_BYTES
"""Greater than every key."""


class KeyRange(NamedTuple):
    """Keys from ``start`` to before ``end``. ``tagged``: a prefix of all of them that says in which slot they are, or
    empty."""

    start: bytes
    end: bytes
    tagged: bytes = b""


def encode_key(key: bytes | str) -> bytes:
    """Raises InvalidArgument or TooLarge, as all functions here do."""
    data = key if type(key) is bytes else _encode(key, "key")
    if not 0 < len(data) <= MAX_KEY_BYTES:
        check_key(data)
    return data


def encode_value(value: bytes | str, name: str = "value") -> bytes:
    data = value if type(value) is bytes else _encode(value, name)
    if len(data) > MAX_VALUE_BYTES:
        check_value(data, name)
    return data


def keys_of(keys: Iterable[bytes | str], *, once: bool = False) -> list[bytes]:
    """Several keys. ``once``: refuses one that is given twice."""
    if isinstance(keys, str | bytes):
        raise InvalidArgument("one key where several are wanted: put it into a list")
    names = [encode_key(key) for key in keys]
    if once and len(set(names)) < len(names):
        seen: set[bytes] = set()
        for name in names:
            if name in seen:
                raise InvalidArgument(f"key {shown(name)} is given twice")
            seen.add(name)
    return names


def items_of(
    items: Mapping[Any, Any] | Iterable[tuple[bytes | str, Any]], encode: Callable[[Any], bytes]
) -> tuple[list[bytes], list[bytes]]:
    """Keys, none of them twice, and their values, made by ``encode``."""
    pairs = list(items.items() if isinstance(items, Mapping) else items)
    return keys_of((key for key, _ in pairs), once=True), [encode(value) for _, value in pairs]


def key_range(prefix: bytes | str | None, start: bytes | str | None, end: bytes | str | None) -> KeyRange:
    """The keys that begin with ``prefix`` and lie from ``start`` to before ``end``, where these are not None."""
    first = b"" if start is None else _encode(start, "start")
    last = BEYOND if end is None else _encode(end, "end")
    common = b"" if prefix is None else _encode(prefix, "prefix")
    for bound in (first, last, common):
        check_bound(bound)
    tagged = common if shards.slots.hash_tag(common) != common else b""
    return KeyRange(max(first, common), min(last, behind(common) or BEYOND), tagged)


def limit_of(limit: int | None) -> int | None:
    """How many records a scan gives at most."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit < 1 << 32):
        raise InvalidArgument(f"limit {shown(limit)}; it must be from 1 to {(1 << 32) - 1}")
    return limit


def mode_of(consistency: Consistency) -> int:
    """The number of a consistency."""
    mode = MODES.get(consistency) if isinstance(consistency, str) else None
    if mode is None:
        raise InvalidArgument(f"consistency {shown(consistency)} is not one of {', '.join(MODES)}")
    return mode


def ttl_ms_of(ttl: float | None) -> int:
    """Milliseconds for ``ttl`` seconds, rounded up; None = for ever = 0."""
    if ttl is None:
        return 0
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl <= MAX_TTL:
        raise InvalidArgument(f"a TTL of {shown(ttl)} s; it must be over 0 and at most {MAX_TTL}")
    milliseconds = math.ceil(ttl * 1000)
    check_ttl(milliseconds)
    return milliseconds


def expect_of(if_version: int | None) -> int:
    """``expect`` of a command for ``if_version``."""
    if if_version is None:
        return ANY_VERSION
    if isinstance(if_version, bool) or not isinstance(if_version, int) or not 0 <= if_version < 1 << 63:
        raise InvalidArgument(f"if_version {shown(if_version)} is not a version")
    return if_version


def delta_of(delta: int) -> int:
    """What is to be added to a counter."""
    if isinstance(delta, bool) or not isinstance(delta, int) or not MIN_DELTA <= delta <= MAX_DELTA:
        raise InvalidArgument(f"{shown(delta)} is not a signed 64-bit integer")
    return delta


def check_timeout(timeout: float) -> float:
    """Seconds as float."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not MIN_TIMEOUT <= timeout <= MAX_TIMEOUT:
        raise InvalidArgument(f"a timeout of {shown(timeout)} s; it must be from {MIN_TIMEOUT} to {MAX_TIMEOUT}")
    return float(timeout)


def check_wait(timeout: float | None) -> float | None:
    """Seconds to wait for others, None = as long as they take."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout <= MAX_TTL:
        raise InvalidArgument(f"a timeout of {shown(timeout)} s; it must be from 0 to {MAX_TTL}, or None")
    return float(timeout)


def slot_of(key: bytes | str, slots: int) -> int:
    """The slot of ``key`` in a cluster of ``slots`` slots, which ``slots()`` of a client tells.

    Keys with the same hash tag (what stands between the first ``{`` and the next ``}``) have the same slot. Raises
    InvalidArgument or TooLarge.

    >>> raftkv.slot_of("{user:7}name", 1024) == raftkv.slot_of("{user:7}mail", 1024)
    True
    """
    if isinstance(slots, bool) or not isinstance(slots, int) or not shards.slots.is_slot_count(slots):
        bounds = f"from {shards.slots.MIN_SLOTS} to {shards.slots.MAX_SLOTS}"
        raise InvalidArgument(f"{shown(slots)} slots; a cluster has a power of two {bounds}")
    return shards.slots.slot_of(encode_key(key), slots)


def _encode(data: object, name: str) -> bytes:
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"the {name} is not encodable as UTF-8: {error.reason}") from None
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise InvalidArgument(f"the {name} is of type {type(data).__name__}; it must be bytes or str")
