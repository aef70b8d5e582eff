"""Commands of clients on single records.

Those that a Pipeline carries (:data:`raftkv.commands.registry.Piped`) are read from its messages by
``decode(message, client, first, slots)``, with the client id and the first incomplete request that the message names,
and written by ``fill(message)``; ``placed(slots)`` tells whether their slot is that of their keys. The former raises
InvalidArgument or TooLarge. Packed messages hold the commands themselves: see :mod:`raftkv.api.pipeline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from raftkv.commands.base import KeyWrite, Read
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
from raftkv.commands.results import TOO_LARGE, Result
from raftkv.commands.rights import DATA, Right
from raftkv.errors import Code
from raftkv.limits import MAX_KEY_BYTES, MAX_VALUE_BYTES
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
    def keys(self) -> tuple[bytes, ...] | None:
        return (self.key,)

    def placed(self, slots: int) -> bool:
        """Whether its slot is that of its key."""
        return self.slot == slot_of(self.key, slots)

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
            fill_record(response.record, self.key, result)


class Put(KeyWrite, frozen=True, tag=1):
    """Write a record. ``expect``: the version that it must have. ``ttl``: milliseconds, 0 = for ever."""

    rpc: ClassVar[str] = "Put"
    grows: ClassVar[bool] = True

    value: bytes
    expect: Expect = ANY_VERSION
    ttl: Ttl = 0

    def size(self) -> int:
        return len(self.key) + len(self.value)

    def refusal(self) -> Result | None:
        return TOO_LARGE if len(self.value) > MAX_VALUE_BYTES else KeyWrite.refusal(self)

    def execute(self, store: Store, slot: Slot) -> int:
        old = slot.records.get(self.key)
        if self.expect != ANY_VERSION and self.expect != (version := store.live_version(old)):
            return -1 - version
        return store.put(slot, self.key, old, self.value, self.ttl and store.time + self.ttl)

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
        expect = expect_of(message) if message.HasField("if_version") else ANY_VERSION
        return cls(slot_of(key, slots), key, value, expect, ttl, client=client, seq=sequence, first=first)

    def fill(self, message: kv_pb2.Operation) -> None:
        message.key, message.value, message.ttl_ms, message.sequence = self.key, self.value, self.ttl, self.seq
        if self.expect != ANY_VERSION:
            message.if_version = self.expect

    @classmethod
    def of(cls, asked: kv_pb2.PutRequest, slots: int, client: bytes, seq: int, first: int) -> Self:
        check_key(asked.key)
        check_value(asked.value)
        check_ttl(asked.ttl_ms)
        slot, expect = slot_of(asked.key, slots), expect_of(asked)
        return cls(slot, asked.key, asked.value, expect, asked.ttl_ms, client=client, seq=seq, first=first)

    def respond(self, result: Result, response: kv_pb2.PutResponse) -> None:
        response.version = result.version


class Delete(KeyWrite, frozen=True, tag=2):
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
    def of(
        cls, asked: kv_pb2.Operation | kv_pb2.DeleteRequest, slots: int, client: bytes, seq: int, first: int
    ) -> Self:
        check_key(asked.key)
        return cls(slot_of(asked.key, slots), asked.key, expect_of(asked), client=client, seq=seq, first=first)

    def fill(self, message: kv_pb2.Operation) -> None:
        super().fill(message)
        if self.expect != ANY_VERSION:
            message.if_version = self.expect

    def respond(self, result: Result, response: kv_pb2.DeleteResponse) -> None:
        response.existed = result.version > 0


class Cas(KeyWrite, frozen=True, tag=3):
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
        return store.put(slot, self.key, old, self.value, store.expires(self.ttl))

    @classmethod
    def of(
        cls, asked: kv_pb2.Operation | kv_pb2.CompareAndSwapRequest, slots: int, client: bytes, seq: int, first: int
    ) -> Self:
        check_key(asked.key)
        check_value(asked.value)
        check_ttl(asked.ttl_ms)
        expected = asked.expected if asked.HasField("expected") else None
        if expected is not None:
            check_value(expected, "expected value")
        slot = slot_of(asked.key, slots)
        return cls(slot, asked.key, asked.value, expected, asked.ttl_ms, client=client, seq=seq, first=first)

    def fill(self, message: kv_pb2.Operation) -> None:
        message.key, message.value, message.ttl_ms, message.sequence = self.key, self.value, self.ttl, self.seq
        if self.expected is not None:
            message.expected = self.expected

    def respond(self, result: Result, response: kv_pb2.CompareAndSwapResponse) -> None:
        response.swapped, response.version = not result.code, result.version


def expect_of(asked: kv_pb2.Operation | kv_pb2.PutRequest | kv_pb2.DeleteRequest | kv_pb2.TouchRequest) -> int:
    """``expect`` of a command. Raises InvalidArgument."""
    if not asked.HasField("if_version"):
        return ANY_VERSION
    check_version(asked.if_version)
    return asked.if_version


def fill_record(message: kv_pb2.Record, key: bytes, result: Result) -> None:
    """Write a record that a command found into an empty message."""
    message.key, message.value, message.version = key, result.value or b"", result.version
    if result.ttl >= 0:
        message.ttl_ms = result.ttl
