"""Transactions within a slot: several checks and operations as one command, in one entry of the log.

The steps are worked out on top of the slot's records before anything is changed: a step that cannot be done refuses the
whole, and what is recorded for retries is the whole result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Self, TypeAlias

from msgspec import Meta, Struct

from raftkv.commands.base import Write
from raftkv.commands.bounds import (
    MAX_VERSION,
    Delta,
    Key,
    Ttl,
    check_key,
    check_ttl,
    check_value,
    check_version,
)
from raftkv.commands.results import MALFORMED, TOO_LARGE, Result, TransactionAnswer
from raftkv.commands.updates import incremented
from raftkv.errors import Code, CrossSlot, InvalidArgument, TooLarge
from raftkv.limits import (
    MAX_KEY_BYTES,
    MAX_TXN_BYTES,
    MAX_TXN_RESULT_BYTES,
    MAX_TXN_STEPS,
    MAX_VALUE_BYTES,
    STEP_OVERHEAD,
)
from raftkv.text import shown
from shards.slots import slot_of

if TYPE_CHECKING:
    from raftkv.store.records import Store
    from raftkv.store.slot import Slot
    from raftkv.v1 import kv_pb2

_Found = tuple[bytes | None, int, int]
"""(value, version, expires)"""
_Told = tuple[int, bytes | None, int]
"""A row of TransactionAnswer."""

_SHOWN: Final = 8
"""Keys that a message names."""


class Plan:
    """What the steps would do, on top of what is there. ``changes``: key -> what it is to be, in the order of changes.

    Each takes the next number of the slot, a removal too.
    """

    __slots__ = ("_slot", "changes", "store")

    def __init__(self, store: Store, slot: Slot) -> None:
        self.store = store
        self.changes: dict[bytes, _Found] = {}
        self._slot = slot

    def found(self, key: bytes) -> _Found:
        change = self.changes.get(key)
        return self.store.found(self._slot, key) if change is None else change

    def version(self, key: bytes) -> int:
        """Of what was there before."""
        return self.store.live_version(self._slot.records.get(key))

    def write(self, key: bytes, value: bytes, expires: int) -> int:
        """Returns the version."""
        version = self._slot.counter + len(self.changes) + 1
        self.changes[key] = value, version, expires
        return version

    def remove(self, key: bytes) -> None:
        self.changes[key] = None, 0, 0

    def carry_out(self) -> None:
        store, slot = self.store, self._slot
        for key, (value, _, expires) in self.changes.items():
            old = slot.records.get(key)
            if value is not None:
                store.put(slot, key, old, value, expires)
            elif old is not None:
                store.remove(slot, key, old)
        if len(self.changes) > 1:
            store.history.join(len(self.changes))


class _Part(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    key: Key

    def payload(self) -> int:
        """Bytes of key and value."""
        return len(self.key)

    def fits(self) -> bool:
        """Whether it keeps the bounds that its type does not tell."""
        return len(self.key) <= MAX_KEY_BYTES and self.payload() - len(self.key) <= MAX_VALUE_BYTES


class Check(_Part, frozen=True):
    """``expect``: the version that the record must have, 0 = absent. ``value``: the one that it must have instead."""

    expect: Annotated[int, Meta(ge=0, le=MAX_VERSION)] = 0
    value: bytes | None = None

    def payload(self) -> int:
        return len(self.key) if self.value is None else len(self.key) + len(self.value)

    def fill(self, message: kv_pb2.Check) -> None:
        message.key = self.key
        if self.value is None:
            message.version = self.expect
        else:
            message.value = self.value

    def holds(self, plan: Plan) -> bool:
        if self.value is None:
            return plan.version(self.key) == self.expect
        return plan.found(self.key)[0] == self.value


class Step(_Part, frozen=True):
    """An operation. Its ``tag`` is the number of the command that does the same alone."""

    writes: ClassVar[bool] = True

    def plan(self, plan: Plan) -> _Told | Result:
        """What it comes to; or why it cannot be done."""
        raise NotImplementedError

    def fill(self, message: kv_pb2.Step) -> None:
        """Write it into an empty message."""
        message.kind, message.key = self.__struct_config__.tag, self.key  # type: ignore[assignment]  # as of its number


class GetStep(Step, frozen=True, tag=0):
    writes: ClassVar[bool] = False

    def plan(self, plan: Plan) -> _Told:
        value, version, expires = plan.found(self.key)
        return version, value, expires - plan.store.time if expires else -1


class PutStep(Step, frozen=True, tag=1):
    value: bytes
    ttl: Ttl = 0

    def payload(self) -> int:
        return len(self.key) + len(self.value)

    def fill(self, message: kv_pb2.Step) -> None:
        super().fill(message)
        message.value, message.ttl_ms = self.value, self.ttl

    def plan(self, plan: Plan) -> _Told:
        return plan.write(self.key, self.value, self.ttl and plan.store.time + self.ttl), None, -1


class DeleteStep(Step, frozen=True, tag=2):
    def plan(self, plan: Plan) -> _Told:
        version = plan.found(self.key)[1]
        if version:
            plan.remove(self.key)
        return version, None, -1


class IncrementStep(Step, frozen=True, tag=60):
    delta: Delta
    ttl: Ttl = 0

    def fill(self, message: kv_pb2.Step) -> None:
        super().fill(message)
        message.delta, message.ttl_ms = self.delta, self.ttl

    def plan(self, plan: Plan) -> _Told | Result:
        value, version, expires = plan.found(self.key)
        after = incremented(self.key, value, self.delta)
        if isinstance(after, Result):
            return after
        return plan.write(self.key, after, expires if version else plan.store.expires(self.ttl)), after, -1


AnyStep: TypeAlias = GetStep | PutStep | DeleteStep | IncrementStep
Steps = Annotated[tuple[AnyStep, ...], Meta(max_length=MAX_TXN_STEPS)]


class Transact(Write, frozen=True, tag=65):
    """If all ``checks`` hold, do the ``steps``, else ``otherwise``. All keys are of the slot."""

    rpc: ClassVar[str] = "Transact"
    tells: ClassVar[bool] = True
    shows: ClassVar[bool] = True

    checks: Annotated[tuple[Check, ...], Meta(max_length=MAX_TXN_STEPS)]
    steps: Steps
    otherwise: Steps = ()

    @property
    def parts(self) -> tuple[_Part, ...]:
        return (*self.checks, *self.steps, *self.otherwise)

    @property
    def key(self) -> bytes:
        """One of its keys, written if any is: for messages, and to find its slot by."""
        for step in (*self.steps, *self.otherwise):
            if step.writes:
                return step.key
        return self.parts[0].key

    @property
    def keys(self) -> tuple[bytes, ...] | None:
        return tuple({part.key: None for part in self.parts})

    def placed(self, slots: int) -> bool:
        """Whether its slot is that of all its keys."""
        return {slot_of(part.key, slots) for part in self.parts} <= {self.slot}

    @property
    def grows(self) -> bool:
        return any(isinstance(step, PutStep | IncrementStep) for step in (*self.steps, *self.otherwise))

    def size(self) -> int:
        parts = self.parts
        return STEP_OVERHEAD * len(parts) + _payload(parts)

    def refusal(self) -> Result | None:
        parts = self.parts
        if not parts:
            return MALFORMED
        payload = _payload(parts)
        # None of them is larger than all.
        if payload > MAX_KEY_BYTES and (payload > MAX_TXN_BYTES or not all(part.fits() for part in parts)):
            return TOO_LARGE
        if written_twice(self.steps) is not None or written_twice(self.otherwise) is not None:
            return MALFORMED
        return Write.refusal(self)

    def shown_bytes(self, store: Store) -> int:
        slot = store.slot(self.slot)
        if slot is None:
            return 0
        read = (step.key for step in (*self.steps, *self.otherwise) if not step.writes)
        return min(sum(len(slot.records.get(key, b"")) for key in read), MAX_TXN_RESULT_BYTES)

    def execute(self, store: Store, slot: Slot) -> Result:
        if slot.expiring:
            for step in (*self.steps, *self.otherwise):
                store.bury(slot, step.key)
        plan = Plan(store, slot)
        succeeded = all(check.holds(plan) for check in self.checks)
        told: list[_Told] = []
        for step in self.steps if succeeded else self.otherwise:
            done = step.plan(plan)
            if isinstance(done, Result):
                return done
            told.append(done)
        answer = TransactionAnswer(succeeded, tuple(told), slot.counter + len(plan.changes))
        if answer.size() > MAX_TXN_RESULT_BYTES:
            detail = f"the transaction would answer {answer.size()} bytes; the maximum is {MAX_TXN_RESULT_BYTES}"
            return Result(Code.TOO_LARGE, detail=detail)
        plan.carry_out()
        return Result(0, answer=answer)

    @classmethod
    def made(
        cls,
        checks: Sequence[Check],
        steps: Sequence[AnyStep],
        otherwise: Sequence[AnyStep],
        slots: int,
        client: bytes = b"",
        seq: int = 0,
        first: int = 0,
    ) -> Self:
        """The transaction of these, each of which is in order. Raises InvalidArgument, CrossSlot or TooLarge."""
        check_counts(checks, steps, otherwise)
        for each in (steps, otherwise):
            if (key := written_twice(each)) is not None:
                raise InvalidArgument(f"the transaction writes key {shown(key)} twice")
        parts = (*checks, *steps, *otherwise)
        if (size := _payload(parts)) > MAX_TXN_BYTES:
            raise TooLarge(f"a transaction of {size} bytes; the maximum is {MAX_TXN_BYTES}")
        slot = one_slot([part.key for part in parts], slots)
        return cls(slot, tuple(checks), tuple(steps), tuple(otherwise), client=client, seq=seq, first=first)

    @classmethod
    def of(
        cls, asked: kv_pb2.Operation | kv_pb2.TransactRequest, slots: int, client: bytes, seq: int, first: int
    ) -> Self:
        txn = asked.transaction
        # Before each of too many is looked at.
        check_counts(txn.checks, txn.steps, txn.otherwise)
        checks, steps, otherwise = map(_check, txn.checks), map(_step, txn.steps), map(_step, txn.otherwise)
        return cls.made(tuple(checks), tuple(steps), tuple(otherwise), slots, client, seq, first)

    def fill(self, message: kv_pb2.Operation) -> None:
        super().fill(message)
        transaction = message.transaction
        for check in self.checks:
            check.fill(transaction.checks.add())
        for step in self.steps:
            step.fill(transaction.steps.add())
        for step in self.otherwise:
            step.fill(transaction.otherwise.add())

    def respond(self, result: Result, response: kv_pb2.TransactResponse) -> None:
        assert isinstance(result.answer, TransactionAnswer)
        fill_transaction(response.result, result.answer)


def _payload(parts: Iterable[_Part]) -> int:
    return sum([part.payload() for part in parts])


def written_twice(steps: Sequence[Step]) -> bytes | None:
    """A key that a list of steps writes twice, None = there is none."""
    written = [step.key for step in steps if step.writes]
    if len(set(written)) == len(written):
        return None
    return next(key for at, key in enumerate(written) if key in written[:at])


def one_slot(keys: Sequence[bytes], slots: int) -> int:
    """The slot of all keys. Raises CrossSlot, which names some of them, and InvalidArgument if there are none."""
    homes: dict[int, bytes] = {}
    for key in keys:
        homes.setdefault(slot_of(key, slots), key)
    if not homes:
        raise InvalidArgument("the transaction is empty")
    if len(homes) > 1:
        named = ", ".join(f"{shown(key)} (slot {slot})" for slot, key in list(homes.items())[:_SHOWN])
        more = f" and {len(homes) - _SHOWN} more" if len(homes) > _SHOWN else ""
        raise CrossSlot(
            f"the keys of a transaction must share a slot, and these are of {len(homes)}: {named}{more}; keys with the "
            "same hash tag, as in {user:7}name and {user:7}mail, share one"
        )
    return next(iter(homes))


def check_counts(*lists: Sequence[object]) -> None:
    """Raises TooLarge for too many checks, operations, or operations otherwise."""
    for parts, name in zip(lists, ("checks", "operations", "operations otherwise"), strict=True):
        if len(parts) > MAX_TXN_STEPS:
            raise TooLarge(f"a transaction with {len(parts)} {name}; the maximum is {MAX_TXN_STEPS}")


def _check(asked: kv_pb2.Check) -> Check:
    check_key(asked.key)
    if asked.HasField("version") == asked.HasField("value"):
        raise InvalidArgument("a check is of either a version or a value")
    if asked.HasField("value"):
        check_value(asked.value)
        return Check(asked.key, 0, asked.value)
    check_version(asked.version)
    return Check(asked.key, asked.version)


def _get(asked: kv_pb2.Step) -> GetStep:
    return GetStep(asked.key)


def _put(asked: kv_pb2.Step) -> PutStep:
    check_value(asked.value)
    check_ttl(asked.ttl_ms)
    return PutStep(asked.key, asked.value, asked.ttl_ms)


def _delete(asked: kv_pb2.Step) -> DeleteStep:
    return DeleteStep(asked.key)


def _increment(asked: kv_pb2.Step) -> IncrementStep:
    check_ttl(asked.ttl_ms)
    return IncrementStep(asked.key, asked.delta, asked.ttl_ms)


_STEPS: Final[dict[int, Callable[[kv_pb2.Step], AnyStep]]] = {
    0: _get,
    1: _put,
    2: _delete,
    60: _increment,
}


def _step(asked: kv_pb2.Step) -> AnyStep:
    check_key(asked.key)
    make = _STEPS.get(asked.kind)
    if make is None:
        raise InvalidArgument(f"a transaction cannot do kind {asked.kind}: it gets, puts, deletes and increments")
    return make(asked)


def fill_transaction(message: kv_pb2.TransactionResult, answer: TransactionAnswer) -> None:
    """Write a transaction's answer into an empty message."""
    message.succeeded, message.number = answer.succeeded, answer.number
    for version, value, ttl in answer.results:
        row = message.results.add(version=version, value=value)
        if ttl >= 0:
            row.ttl_ms = ttl


def read_transaction(message: kv_pb2.TransactionResult) -> TransactionAnswer:
    """The answer that :func:`fill_transaction` wrote."""
    rows = tuple(
        (row.version, row.value if row.HasField("value") else None, row.ttl_ms if row.HasField("ttl_ms") else -1)
        for row in message.results
    )
    return TransactionAnswer(message.succeeded, rows, message.number)
