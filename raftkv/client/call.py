"""What the client keeps of one operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from raftkv.commands.bounds import ANY_VERSION
from raftkv.commands.records import Cas, Delete, Get, Put
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    import asyncio

    from raftkv.client.session import ClientSession
    from raftkv.commands.records import Piped
    from raftkv.commands.results import Result

_GET: Final = kv_pb2.KIND_GET
_PUT: Final = kv_pb2.KIND_PUT
_DELETE: Final = kv_pb2.KIND_DELETE


class Call:
    """One operation and its attempts.

    ``deadline``: monotonic time at which the operation ends. The rest is about the latest attempt: ``number`` names it,
    ``future`` gets its result, ``slot`` is the key's, ``address`` is asked, ``budget`` in seconds is what the node is
    given; it began at the monotonic time ``started`` and is given up at ``limit``.
    """

    # Defaults live in the class: an instance starts with three attributes.
    future: asyncio.Future[Result]
    slot: int
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
    session: ClientSession | None = None
    seq = 0

    def __init__(self, kind: kv_pb2.Kind.ValueType, key: bytes, mode: int = 0) -> None:
        self.kind = kind
        self.key = key
        self.mode = mode

    def command(self, first: int) -> Piped:
        """What the attempt asks for. ``first``: of a write, the first number that its session still waits for."""
        kind, slot, key = self.kind, self.slot, self.key
        if kind == _GET:
            return Get(slot, key, mode=self.mode)
        session, seq = self.session, self.seq
        assert session is not None
        if kind == _DELETE:
            return Delete(slot, key, self.expect, client=session.id, seq=seq, first=first)
        value = self.value
        assert value is not None
        if kind == _PUT:
            return Put(slot, key, value, self.expect, self.ttl_ms, client=session.id, seq=seq, first=first)
        return Cas(slot, key, value, self.expected, self.ttl_ms, client=session.id, seq=seq, first=first)
