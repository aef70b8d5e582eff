"""Commands of clients that change a record by what it is: counters, appends, times to live, reads that remove."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Final, Self

from raftkv.commands.base import KeyWrite
from raftkv.commands.bounds import (
    ANY_VERSION,
    MAX_DELTA,
    MIN_DELTA,
    Delta,
    Expect,
    Ttl,
    check_key,
    check_ttl,
    check_value,
)
from raftkv.commands.records import expect_of, fill_record
from raftkv.commands.results import TOO_LARGE, Result
from raftkv.commands.rights import DATA, Right
from raftkv.errors import Code, InvalidArgument
from raftkv.limits import MAX_VALUE_BYTES
from raftkv.text import shown
from shards.slots import slot_of

if TYPE_CHECKING:
    from raftkv.store.records import Store
    from raftkv.store.slot import Slot
    from raftkv.v1 import kv_pb2

_NUMBER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")


def incremented(key: bytes, value: bytes | None, delta: int) -> bytes | Result:
    """The value of a counter after an increment, None = it was absent, which counts as 0; or why there is none."""
    if value is None:
        before = 0
    elif _NUMBER.fullmatch(value) and MIN_DELTA <= (before := int(value)) <= MAX_DELTA:
        pass
    else:
        detail = f"key {shown(key)}: the value is not a signed 64-bit integer as decimal text"
        return Result(Code.NOT_A_NUMBER, detail=detail)
    after = before + delta
    if not MIN_DELTA <= after <= MAX_DELTA:
        detail = f"key {shown(key)}: {before} and {delta} add up to more than 64 bits hold"
        return Result(Code.OUT_OF_RANGE, detail=detail)
    return b"%d" % after


class Increment(KeyWrite, frozen=True, tag=60):
    """Add ``delta`` to a counter. ``ttl``: of one that is created, in milliseconds, 0 = for ever."""

    rpc: ClassVar[str] = "Increment"
    grows: ClassVar[bool] = True
    tells: ClassVar[bool] = True

    delta: Delta
    ttl: Ttl = 0

    def execute(self, store: Store, slot: Slot) -> Result:
        value, version, expires = store.found(slot, self.key)
        after = incremented(self.key, value, self.delta)
        if isinstance(after, Result):
            return after
        until = expires if version else store.expires(self.ttl)
        return Result(0, store.put(slot, self.key, slot.records.get(self.key), after, until), after)

    @classmethod
    def of(
        cls, asked: kv_pb2.Operation | kv_pb2.IncrementRequest, slots: int, client: bytes, seq: int, first: int
    ) -> Self:
        check_key(asked.key)
        check_ttl(asked.ttl_ms)
        slot = slot_of(asked.key, slots)
        return cls(slot, asked.key, asked.delta, asked.ttl_ms, client=client, seq=seq, first=first)

    def fill(self, message: kv_pb2.Operation) -> None:
        super().fill(message)
        message.delta, message.ttl_ms = self.delta, self.ttl

    def respond(self, result: Result, response: kv_pb2.IncrementResponse) -> None:
        response.value, response.version = int(result.value or b"0"), result.version


class Append(KeyWrite, frozen=True, tag=61):
    """Add ``value`` to the end of a record's. ``ttl``: of one that is created, in milliseconds, 0 = for ever."""

    rpc: ClassVar[str] = "Append"
    grows: ClassVar[bool] = True
    tells: ClassVar[bool] = True

    value: bytes
    ttl: Ttl = 0

    def size(self) -> int:
        return len(self.key) + len(self.value)

    def refusal(self) -> Result | None:
        return TOO_LARGE if len(self.value) > MAX_VALUE_BYTES else super().refusal()

    def execute(self, store: Store, slot: Slot) -> Result:
        value, version, expires = store.found(slot, self.key)
        after = (value or b"") + self.value
        if len(after) > MAX_VALUE_BYTES:
            detail = f"key {shown(self.key)}: the value would have {len(after)} bytes; the maximum is {MAX_VALUE_BYTES}"
            return Result(Code.TOO_LARGE, detail=detail)
        until = expires if version else store.expires(self.ttl)
        return Result(0, store.put(slot, self.key, slot.records.get(self.key), after, until), number=len(after))

    @classmethod
    def of(
        cls, asked: kv_pb2.Operation | kv_pb2.AppendRequest, slots: int, client: bytes, seq: int, first: int
    ) -> Self:
        check_key(asked.key)
        check_value(asked.value)
        check_ttl(asked.ttl_ms)
        slot = slot_of(asked.key, slots)
        return cls(slot, asked.key, asked.value, asked.ttl_ms, client=client, seq=seq, first=first)

    def fill(self, message: kv_pb2.Operation) -> None:
        super().fill(message)
        message.value, message.ttl_ms = self.value, self.ttl

    def respond(self, result: Result, response: kv_pb2.AppendResponse) -> None:
        response.length, response.version = result.number, result.version


class Touch(KeyWrite, frozen=True, tag=62):
    """Let a record live for ``ttl`` milliseconds from now on, 0 = for ever. ``expect``: the version that it must have.

    Its outcome is that version, 0 = there is no record.
    """

    rpc: ClassVar[str] = "Touch"

    ttl: Ttl
    expect: Expect = ANY_VERSION

    def execute(self, store: Store, slot: Slot) -> int:
        old = slot.records.get(self.key)
        version = store.live_version(old)
        if self.expect != ANY_VERSION and self.expect != version:
            return -1 - version
        if version and old is not None and (self.ttl or store.found(slot, self.key)[2]):
            store.touch(slot, self.key, old, store.expires(self.ttl))
        return version

    @classmethod
    def of(cls, asked: kv_pb2.Operation | kv_pb2.TouchRequest, slots: int, client: bytes, seq: int, first: int) -> Self:
        check_key(asked.key)
        check_ttl(asked.ttl_ms)
        slot = slot_of(asked.key, slots)
        return cls(slot, asked.key, asked.ttl_ms, expect_of(asked), client=client, seq=seq, first=first)

    def fill(self, message: kv_pb2.Operation) -> None:
        super().fill(message)
        message.ttl_ms = self.ttl
        if self.expect != ANY_VERSION:
            message.if_version = self.expect

    def respond(self, result: Result, response: kv_pb2.TouchResponse) -> None:
        response.existed = result.version > 0


class GetAndDelete(KeyWrite, frozen=True, tag=63):
    """Remove a record, and tell what it was."""

    rpc: ClassVar[str] = "GetAndDelete"
    tells: ClassVar[bool] = True
    shows: ClassVar[bool] = True

    def shown_bytes(self, store: Store) -> int:
        slot = store.slot(self.slot)
        return 0 if slot is None else len(slot.records.get(self.key, b""))

    def execute(self, store: Store, slot: Slot) -> int | Result:
        value, version, expires = store.found(slot, self.key)
        if not version:
            return 0
        store.remove(slot, self.key, slot.records[self.key])
        return Result(0, version, value, expires - store.time if expires else -1)

    @classmethod
    def of(
        cls, asked: kv_pb2.Operation | kv_pb2.GetAndDeleteRequest, slots: int, client: bytes, seq: int, first: int
    ) -> Self:
        check_key(asked.key)
        return cls(slot_of(asked.key, slots), asked.key, client=client, seq=seq, first=first)

    def respond(self, result: Result, response: kv_pb2.GetAndDeleteResponse) -> None:
        if result.version:
            fill_record(response.record, self.key, result)


class CompareAndDelete(KeyWrite, frozen=True, tag=64):
    """Remove a record if its value is ``expected``."""

    rpc: ClassVar[str] = "CompareAndDelete"
    answers: ClassVar[tuple[int, ...]] = (Code.CONDITION_FAILED,)

    expected: bytes

    @property
    def needs(self) -> Right | None:
        # It tells whether a value is there.
        return DATA

    def size(self) -> int:
        return len(self.key) + len(self.expected)

    def refusal(self) -> Result | None:
        return TOO_LARGE if len(self.expected) > MAX_VALUE_BYTES else super().refusal()

    def execute(self, store: Store, slot: Slot) -> int:
        value, version, _ = store.found(slot, self.key)
        if value != self.expected:
            return -1 - version
        store.remove(slot, self.key, slot.records[self.key])
        return version

    @classmethod
    def of(
        cls, asked: kv_pb2.Operation | kv_pb2.CompareAndDeleteRequest, slots: int, client: bytes, seq: int, first: int
    ) -> Self:
        check_key(asked.key)
        if not asked.HasField("expected"):
            raise InvalidArgument("the expected value is missing")
        check_value(asked.expected, "expected value")
        return cls(slot_of(asked.key, slots), asked.key, asked.expected, client=client, seq=seq, first=first)

    def fill(self, message: kv_pb2.Operation) -> None:
        super().fill(message)
        message.expected = self.expected

    def respond(self, result: Result, response: kv_pb2.CompareAndDeleteResponse) -> None:
        response.deleted, response.version = not result.code, result.version
