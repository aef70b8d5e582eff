"""The ids of clients, by which writes are named: when it was drawn, then random bytes."""

from __future__ import annotations

from typing import Final

from raftkv.commands.bounds import CLIENT_BYTES

TAIL_BYTES: Final = 10
"""Random bytes of a client id, behind the time."""
_TIME_BYTES: Final = CLIENT_BYTES - TAIL_BYTES
_LATEST: Final = (1 << 8 * _TIME_BYTES) - 1


def client_id(time_ms: int, tail: bytes) -> bytes:
    """The id of a client that drew it at ``time_ms`` of Unix time; ``tail``: TAIL_BYTES random bytes."""
    return max(0, min(time_ms, _LATEST)).to_bytes(_TIME_BYTES, "big") + tail


def drawn_at(client: bytes) -> int:
    """When a client id was drawn, in milliseconds of Unix time."""
    return int.from_bytes(client[:_TIME_BYTES], "big")
