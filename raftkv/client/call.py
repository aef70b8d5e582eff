"""What the client keeps of one operation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkv.commands.bounds import ANY_VERSION

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from raftkv.client.session import ClientSession
    from raftkv.commands.results import Result
    from raftkv.v1 import kv_pb2


class Call:
    """One operation and its attempts.

    ``deadline``: monotonic time at which the operation ends. The rest is about the latest attempt: ``number`` names it,
    ``future`` gets its result, ``address`` is asked, ``budget`` in seconds is what the node is given; it began at the
    monotonic time ``started`` and is given up at ``limit``.
    """

    # Defaults live in the class: an instance starts with three attributes.
    future: asyncio.Future[Result]
    address = ""
    number = 0
    budget = 0.0
    started = 0.0
    limit: float
    deadline: float
    value: bytes | None = None
    expect = ANY_VERSION
    expected: bytes | None = None
    ttl_ms = 0
    more: Callable[[kv_pb2.Operation], None] | None = None
    """Writes into its message what only some kinds of operations have."""
    payload = 0
    """Bytes besides the key."""
    session: ClientSession | None = None
    seq = 0

    def __init__(self, kind: kv_pb2.Kind.ValueType, key: bytes, mode: int = 0) -> None:
        self.kind = kind
        self.key = key
        self.mode = mode
