"""What the client keeps of one operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from msgspec.structs import replace

from raftkv.commands.bounds import ANY_VERSION
from raftkv.commands.records import Get, Put
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    import asyncio

    from raftkv.client.session import ClientSession
    from raftkv.commands.registry import Piped
    from raftkv.commands.results import Result

_GET: Final = kv_pb2.KIND_GET


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
    ttl_ms = 0
    asked: Piped | None = None
    """What is asked for, but for its slot and request id; a Get and a Put are made of what is here, which is faster."""
    payload = 0
    """Bytes besides the key."""
    session: ClientSession | None = None
    seq = 0
    resolve = False
    """While its outcome is unknown it is tried on."""
    attempts = 1
    hints = 0
    """How often a node named another one as the leader."""

    def __init__(self, kind: kv_pb2.Kind.ValueType, key: bytes, mode: int = 0) -> None:
        self.kind = kind
        self.key = key
        self.mode = mode

    @classmethod
    def of(cls, asked: Piped) -> Self:
        """The call for a write that tells no slot and no request id yet."""
        call = cls(kv_pb2.Kind.ValueType(asked.number), asked.key)
        call.asked, call.payload = asked, asked.size() - len(asked.key)
        call.expect = getattr(asked, "expect", ANY_VERSION)
        return call

    def command(self, first: int) -> Piped:
        """What the attempt asks for. ``first``: of a write, the first number that its session still waits for."""
        if self.kind == _GET:
            return Get(self.slot, self.key, mode=self.mode)
        session, asked = self.session, self.asked
        assert session is not None
        if asked is not None:
            return replace(asked, slot=self.slot, client=session.id, seq=self.seq, first=first)
        value = self.value
        assert value is not None
        return Put(self.slot, self.key, value, self.expect, self.ttl_ms, client=session.id, seq=self.seq, first=first)
