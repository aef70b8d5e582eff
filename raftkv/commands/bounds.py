"""Bounds of what commands carry, as types that decoding checks and as checks of requests with messages for people."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from msgspec import Meta

from raftkv import limits
from raftkv.errors import InvalidArgument, TooLarge

MAX_GROUP_TIME: Final = 2**60
"""Milliseconds; a later time is refused, so that times and expiries always fit into 64 bits."""

MAX_TTL_MS: Final = limits.MAX_TTL * 1000
MAX_COUNT: Final = 2**62
"""Of request numbers, versions, ids of moves."""

MAX_EXPIRES: Final = 2**61
"""Milliseconds; no record expires later."""

MAX_VERSION: Final = 2**63 - 1
"""That a condition may name."""

MAX_SLOT: Final = 65535
CLIENT_BYTES: Final = 16

MIN_DELTA: Final = -(2**63)
MAX_DELTA: Final = 2**63 - 1
"""Of counters and of what is added to them."""

ANY_VERSION: Final = -1
"""``expect`` of an unconditional write."""

ABSENT_VERSION: Final = 0
"""``expect`` of a write that wants the key to be absent; also the version reported for an absent record."""


class Mode(IntEnum):
    """Consistency of a read."""

    LINEARIZABLE = 0
    QUORUM = 1
    STALE = 2


SlotNumber = Annotated[int, Meta(ge=0, le=MAX_SLOT)]
Slots = Annotated[tuple[SlotNumber, ...], Meta(min_length=1)]
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Id = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
Key = Annotated[bytes, Meta(min_length=1)]
Expect = Annotated[int, Meta(ge=ANY_VERSION, le=MAX_VERSION)]
Ttl = Annotated[int, Meta(ge=0, le=MAX_TTL_MS)]
Delta = Annotated[int, Meta(ge=MIN_DELTA, le=MAX_DELTA)]
Client = Annotated[bytes, Meta(max_length=CLIENT_BYTES)]
ReadMode = Annotated[int, Meta(ge=0, le=2)]


def check_key(key: bytes) -> None:
    """Raises InvalidArgument for an empty key, TooLarge for one over MAX_KEY_BYTES."""
    if not key:
        raise InvalidArgument("the key is empty")
    if len(key) > limits.MAX_KEY_BYTES:
        raise TooLarge(f"a key of {len(key)} bytes; the maximum is {limits.MAX_KEY_BYTES}")


def behind(prefix: bytes) -> bytes:
    """The first bound that is greater than all keys that begin with ``prefix``, empty if there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b""


def check_bound(bound: bytes) -> None:
    """Raises TooLarge for a bound of a range over MAX_BOUND_BYTES."""
    if len(bound) > limits.MAX_BOUND_BYTES:
        raise TooLarge(f"a bound of {len(bound)} bytes; the maximum is {limits.MAX_BOUND_BYTES}")


def check_value(value: bytes, name: str = "value") -> None:
    """Raises TooLarge for a value over MAX_VALUE_BYTES."""
    if len(value) > limits.MAX_VALUE_BYTES:
        raise TooLarge(f"a {name} of {len(value)} bytes; the maximum is {limits.MAX_VALUE_BYTES}")


def check_ttl(ttl_ms: int) -> None:
    """Raises InvalidArgument for a negative TTL (milliseconds) or one over MAX_TTL."""
    if not 0 <= ttl_ms <= MAX_TTL_MS:
        raise InvalidArgument(f"a TTL of {ttl_ms} ms; it must be from 0 (no expiry) to {MAX_TTL_MS}")


def check_request_id(client_id: bytes, sequence: int, first_incomplete: int) -> None:
    """Raises InvalidArgument unless the three name a write."""
    if len(client_id) != CLIENT_BYTES:
        raise InvalidArgument(f"a client id of {len(client_id)} bytes; it has {CLIENT_BYTES}")
    if not 1 <= first_incomplete <= sequence <= MAX_COUNT:
        raise InvalidArgument(
            f"request {sequence} with first incomplete {first_incomplete}: want 1 <= first <= request <= {MAX_COUNT}"
        )


def check_version(version: int) -> None:
    """Raises InvalidArgument for a version that no record can have."""
    if not ANY_VERSION <= version <= MAX_VERSION:
        raise InvalidArgument(f"{version} is not a version")


def check_mode(mode: int) -> None:
    """Raises InvalidArgument for an unknown consistency."""
    if not Mode.LINEARIZABLE <= mode <= Mode.STALE:
        raise InvalidArgument(f"unknown consistency {mode}")
