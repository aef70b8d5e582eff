"""Commands of clients on records.

Those that a Pipeline carries are read from its messages by ``decode(message, client, first, slots)``, with the client
id and the first incomplete request that the message names, and written by ``fill(message)``. The former raises
InvalidArgument or TooLarge. Packed messages hold the commands themselves: see :mod:`raftkv.api.pipeline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Self, TypeAlias

from msgspec import Meta

from raftkv import limits
from raftkv.commands.base import Read, Write
from raftkv.commands.bounds import (
    ANY_VERSION,
    CLIENT_BYTES,
    MAX_COUNT,
    MAX_TTL_MS,
    Expect,
    Key,
    Ttl,
    check_key,
    check_mode,
    check_request_id,
    check_ttl,
    check_value,
    check_version,
)
from raftkv.commands.results import TOO_LARGE, Result, ScanPage
from raftkv.commands.rights import DATA, Right
from raftkv.errors import Code, InvalidArgument
from raftkv.limits import MAX_KEY_BYTES, MAX_SCAN_PAGE_BYTES, MAX_VALUE_BYTES, SCAN_PAGE_BYTES
from shards.slots import slot_of

if TYPE_CHECKING:
    from raftkv.store.records import Store
    from raftkv.store.slot import Slot
    from raftkv.v1 import kv_pb2


class Get(Read, frozen=True, tag=0):
    """The record of a key; version 0 and no value if there is none."""

    rpc: ClassVar[str] = "Get"

    key: Key

    @property
    def only_key(self) -> bytes | None:
        return self.key

    def size(self) -> int:
        return len(self.key)

    def refusal(self) -> Result | None:
        return TOO_LARGE if len(self.key) > MAX_KEY_BYTES else None

    def read(self, store: Store) -> Result:
        return store.read(self.slot, self.key)

    @classmethod
    def decode(cls, message: kv_pb2.Operation, client: bytes, first: int, slots: int) -> Self:  # noqa: ARG003 - as there
        key, mode = message.key, message.consistency
        if not 0 < len(key) <= MAX_KEY_BYTES:
            check_key(key)
        if mode:
            check_mode(mode)
        return cls(slot_of(key, slots), key, mode=mode)

    def fill(self, message: kv_pb2.Operation) -> None:
        message.key, message.consistency = self.key, self.mode  # type: ignore[assignment]  # an enumeration's numbers

    @classmethod
    def from_request(cls, request: kv_pb2.GetRequest, slots: int) -> Self:
        check_key(request.key)
        check_mode(request.consistency)
        return cls(slot_of(request.key, slots), request.key, mode=request.consistency)

    def respond(self, result: Result, response: kv_pb2.GetResponse) -> None:
        if result.version:
            record = response.record
            record.key, record.value, record.version = self.key, result.value or b"", result.version
            if result.ttl >= 0:
                record.ttl_ms = result.ttl


class Put(Write, frozen=True, tag=1):
    """Write a record. ``expect``: the version that it must have. ``ttl``: milliseconds, 0 = for ever."""

    rpc: ClassVar[str] = "Put"
    grows: ClassVar[bool] = True

    value: bytes
    expect: Expect = ANY_VERSION
    ttl: Ttl = 0

    def size(self) -> int:
        return len(self.key) + len(self.value)

    def refusal(self) -> Result | None:
        return TOO_LARGE if len(self.value) > MAX_VALUE_BYTES else super().refusal()

    def execute(self, store: Store, slot: Slot) -> int:
        old = slot.records.get(self.key)
        if self.expect != ANY_VERSION and self.expect != (version := store.live_version(old)):
            return -1 - version
        return store.put(slot, self.key, old, self.value, self.ttl)

    @classmethod
    def decode(cls, message: kv_pb2.Operation, client: bytes, first: int, slots: int) -> Self:
        key, value, ttl, sequence = message.key, message.value, message.ttl_ms, message.sequence
        if not 0 < len(key) <= MAX_KEY_BYTES:
            check_key(key)
        if not sequence:
            client, first = b"", 0
        elif len(client) != CLIENT_BYTES or not 1 <= first <= sequence <= MAX_COUNT:
            check_request_id(client, sequence, first)
        if len(value) > MAX_VALUE_BYTES:
            check_value(value)
        if ttl > MAX_TTL_MS:
            check_ttl(ttl)
        expect = _expect(message) if message.HasField("if_version") else ANY_VERSION
        return cls(slot_of(key, slots), key, value, expect, ttl, client=client, seq=sequence, first=first)

    def fill(self, message: kv_pb2.Operation) -> None:
        message.key, message.value, message.ttl_ms, message.sequence = self.key, self.value, self.ttl, self.seq
        if self.expect != ANY_VERSION:
            message.if_version = self.expect

    @classmethod
    def from_request(cls, request: kv_pb2.PutRequest, slots: int) -> Self:
        check_key(request.key)
        check_value(request.value)
        check_ttl(request.ttl_ms)
        client, seq, first = _request_id(request)
        slot = slot_of(request.key, slots)
        expect = _expect(request)
        return cls(slot, request.key, request.value, expect, request.ttl_ms, client=client, seq=seq, first=first)

    def respond(self, result: Result, response: kv_pb2.PutResponse) -> None:
        response.version = result.version


class Delete(Write, frozen=True, tag=2):
    """Remove a record. ``expect``: the version that it must have."""

    rpc: ClassVar[str] = "Delete"

    expect: Expect = ANY_VERSION

    def execute(self, store: Store, slot: Slot) -> int:
        old = slot.records.get(self.key)
        version = store.live_version(old)
        if self.expect != ANY_VERSION and self.expect != version:
            return -1 - version
        if version and old is not None:
            store.remove(slot, self.key, old)
        return version

    @classmethod
    def decode(cls, message: kv_pb2.Operation, client: bytes, first: int, slots: int) -> Self:
        check_key(message.key)
        client, seq, first = _named(message, client, first)
        slot = slot_of(message.key, slots)
        return cls(slot, message.key, _expect(message), client=client, seq=seq, first=first)

    def fill(self, message: kv_pb2.Operation) -> None:
        message.key, message.sequence = self.key, self.seq
        if self.expect != ANY_VERSION:
            message.if_version = self.expect

    @classmethod
    def from_request(cls, request: kv_pb2.DeleteRequest, slots: int) -> Self:
        check_key(request.key)
        client, seq, first = _request_id(request)
        slot = slot_of(request.key, slots)
        return cls(slot, request.key, _expect(request), client=client, seq=seq, first=first)

    def respond(self, result: Result, response: kv_pb2.DeleteResponse) -> None:
        response.existed = result.version > 0


class Cas(Write, frozen=True, tag=3):
    """Write a record if its value is ``expected``, None = if there is none. ``ttl``: milliseconds, 0 = for ever."""

    rpc: ClassVar[str] = "CompareAndSwap"
    answers: ClassVar[tuple[int, ...]] = (Code.CONDITION_FAILED,)
    grows: ClassVar[bool] = True

    value: bytes
    expected: bytes | None = None
    ttl: Ttl = 0

    @property
    def needs(self) -> Right | None:
        # It tells whether a value is there.
        return DATA

    def size(self) -> int:
        return len(self.key) + len(self.value) + len(self.expected or b"")

    def refusal(self) -> Result | None:
        largest = max(len(self.value), len(self.expected or b""))
        return TOO_LARGE if largest > MAX_VALUE_BYTES else super().refusal()

    def execute(self, store: Store, slot: Slot) -> int:
        old = slot.records.get(self.key)
        version = store.live_version(old)
        if self.expected != (store.value_of(old) if version and old is not None else None):
            return -1 - version
        return store.put(slot, self.key, old, self.value, self.ttl)

    @classmethod
    def decode(cls, message: kv_pb2.Operation, client: bytes, first: int, slots: int) -> Self:
        check_key(message.key)
        client, seq, first = _named(message, client, first)
        return cls._checked(message, slots, client, seq, first)

    def fill(self, message: kv_pb2.Operation) -> None:
        message.key, message.value, message.ttl_ms, message.sequence = self.key, self.value, self.ttl, self.seq
        if self.expected is not None:
            message.expected = self.expected

    @classmethod
    def from_request(cls, request: kv_pb2.CompareAndSwapRequest, slots: int) -> Self:
        check_key(request.key)
        return cls._checked(request, slots, *_request_id(request))

    @classmethod
    def _checked(
        cls, asked: kv_pb2.Operation | kv_pb2.CompareAndSwapRequest, slots: int, client: bytes, seq: int, first: int
    ) -> Self:
        check_value(asked.value)
        check_ttl(asked.ttl_ms)
        expected = asked.expected if asked.HasField("expected") else None
        if expected is not None:
            check_value(expected, "expected value")
        slot = slot_of(asked.key, slots)
        return cls(slot, asked.key, asked.value, expected, asked.ttl_ms, client=client, seq=seq, first=first)

    def respond(self, result: Result, response: kv_pb2.CompareAndSwapResponse) -> None:
        response.swapped, response.version = not result.code, result.version


class Scan(Read, frozen=True, tag=4):
    """Records of a slot with keys greater than ``after`` in key order, as much as fits into ``limit_bytes``.

    At least one record, if there is any. Limit 0 means SCAN_PAGE_BYTES; MAX_SCAN_PAGE_BYTES caps it.
    """

    rpc: ClassVar[str] = "Scan"

    after: bytes
    limit_bytes: Annotated[int, Meta(ge=0, le=2**32)] = 0

    def size(self) -> int:
        return len(self.after)

    def refusal(self) -> Result | None:
        return TOO_LARGE if len(self.after) > limits.MAX_KEY_BYTES else None

    def read(self, store: Store) -> Result:
        return store.scan(self.slot, self.after, self.limit_bytes)

    @classmethod
    def from_request(cls, request: kv_pb2.ScanRequest, slots: int) -> Self:
        if request.slot >= slots:
            raise InvalidArgument(f"no slot {request.slot}: there are {slots}")
        if len(request.after) > MAX_KEY_BYTES:
            check_key(request.after)
        check_mode(request.consistency)
        size = min(request.limit_bytes or SCAN_PAGE_BYTES, MAX_SCAN_PAGE_BYTES)
        return cls(request.slot, request.after, size, mode=request.consistency)

    def respond(self, result: Result, response: kv_pb2.ScanResponse) -> None:
        page = result.answer
        assert isinstance(page, ScanPage)
        response.more = page.more
        for key, value, version, ttl in page.records:
            row = response.records.add(key=key, value=value, version=version)
            if ttl >= 0:
                row.ttl_ms = ttl


Piped: TypeAlias = Get | Put | Delete | Cas
"""What a Pipeline carries."""


def _expect(asked: kv_pb2.Operation | kv_pb2.PutRequest | kv_pb2.DeleteRequest) -> int:
    if not asked.HasField("if_version"):
        return ANY_VERSION
    check_version(asked.if_version)
    return asked.if_version


def _named(message: kv_pb2.Operation, client: bytes, first: int) -> tuple[bytes, int, int]:
    """The request id of a Pipeline's write: client, number, first number that it waits for."""
    if not message.sequence:
        return b"", 0, 0
    check_request_id(client, message.sequence, first)
    return client, message.sequence, first


def _request_id(
    request: kv_pb2.PutRequest | kv_pb2.DeleteRequest | kv_pb2.CompareAndSwapRequest,
) -> tuple[bytes, int, int]:
    if not request.HasField("request_id"):
        return b"", 0, 0
    name = request.request_id
    check_request_id(name.client_id, name.sequence, name.first_incomplete)
    return name.client_id, name.sequence, name.first_incomplete
