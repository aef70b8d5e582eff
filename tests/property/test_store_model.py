"""Guarantee: for any history of entries, the store does what a naive model does; snapshots and replicas never disagree.

The model knows the rules only: a dict of records, a dict of outcomes per (slot, client), linear searches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from raftkv import limits
from raftkv.commands.base import KeyWrite, Write
from raftkv.commands.group import Genesis
from raftkv.commands.records import Cas, Delete, Put
from raftkv.commands.results import Result, TransactionAnswer
from raftkv.commands.transactions import (
    Check,
    DeleteStep,
    GetStep,
    IncrementStep,
    PutStep,
    Transact,
    written_twice,
)
from raftkv.commands.updates import Append, CompareAndDelete, GetAndDelete, Increment, Touch
from raftkv.errors import Code
from raftkv.store import history as history_module
from raftkv.store.history import Change, Event
from raftkv.store.records import Store
from raftkv.store.snapshot import StoreSnapshot
from tests.store_helpers import again, events_in, in_order, logged, restored

SLOTS = 3
IDLE = limits.SESSION_IDLE * 1000
RETRIED = limits.MAX_TIMEOUT * 1000
KEYS = [b"a", b"b", b"c"]
VALUES = [b"", b"1", b"-9"]


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    """Entries of two puts are blocks of the history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_module, "_BLOCK_EVENTS", 2)
        yield


@dataclass
class Model:
    time: int = 0
    records: dict[tuple[int, bytes], tuple[bytes, int, int]] = field(default_factory=dict)
    counters: dict[int, int] = field(default_factory=dict)
    outcomes: dict[tuple[int, bytes], dict[int, Result]] = field(default_factory=dict)
    kept: dict[tuple[int, bytes, int], int] = field(default_factory=dict)
    """When results that are more than a version were recorded."""
    firsts: dict[tuple[int, bytes], int] = field(default_factory=dict)
    used: dict[tuple[int, bytes], int] = field(default_factory=dict)
    floors: dict[int, bytes] = field(default_factory=dict)
    events: dict[int, list[Event]] = field(default_factory=dict)
    """By slot, all that ever happened."""

    def entry(self, now: int, ops: list[Write]) -> list[Result | None]:
        self.time = max(self.time, now)
        results = [self.command(op) for op in ops]
        due = [(until, slot, key) for (slot, key), (_, _, until) in self.records.items() if 0 < until <= self.time]
        for _, slot, key in sorted(due):
            self.remove(slot, key, Change.EXPIRE)
        for (slot, client), last in list(self.used.items()):
            if last <= self.time - IDLE:
                del self.used[slot, client], self.outcomes[slot, client], self.firsts[slot, client]
                self.floors[slot] = max(self.floors.get(slot, b""), client)
        for (slot, client, seq), since in list(self.kept.items()):
            if since <= self.time - RETRIED:
                del self.kept[slot, client, seq]
                if (slot, client) in self.firsts:
                    self.firsts[slot, client] = max(self.firsts[slot, client], seq + 1)
        return results

    def command(self, op: Write) -> Result | None:
        """None: refused as SESSION_EXPIRED."""
        if op.slot >= SLOTS:
            return Result(Code.MOVED)
        if not op.client:
            return self.write(op)
        name = op.slot, op.client
        if name not in self.outcomes:
            if op.client <= self.floors.get(op.slot, b""):
                return None
            self.outcomes[name], self.firsts[name] = {}, 0
        self.firsts[name] = max(self.firsts[name], op.first)
        if op.seq < self.firsts[name]:
            return None
        self.used[name] = self.time
        if op.seq not in self.outcomes[name]:
            self.outcomes[name][op.seq] = result = self.write(op)
            if result not in (Result(Code.OK, result.version), Result(Code.CONDITION_FAILED, result.version)):
                self.kept[op.slot, op.client, op.seq] = self.time
        return self.outcomes[name][op.seq]

    def read(self, slot: int, key: bytes) -> tuple[bytes | None, int, int]:
        value, version, expires = self.records.get((slot, key), (b"", 0, 0))
        if version == 0 or 0 < expires <= self.time:
            return None, 0, -1
        return value, version, expires - self.time if expires else -1

    def tell(self, slot: int, key: bytes, change: Change, value: bytes | None = None) -> int:
        """Something happens, under the slot's next number."""
        number = self.counters[slot] = self.counters.get(slot, 0) + 1
        self.events.setdefault(slot, []).append(Event(slot, number, key, change, value, False))
        return number

    def set(self, slot: int, key: bytes, value: bytes, ttl: int) -> int:
        self.bury(slot, key)
        new = self.tell(slot, key, Change.PUT, value)
        self.records[slot, key] = value, new, self.time + ttl if ttl else 0
        return new

    def bury(self, slot: int, key: bytes) -> None:
        """An expired record that a command meets goes first."""
        if 0 < self.records.get((slot, key), (b"", 0, 0))[2] <= self.time:
            self.remove(slot, key, Change.EXPIRE)

    def remove(self, slot: int, key: bytes, change: Change) -> None:
        self.tell(slot, key, change)
        del self.records[slot, key]

    def change(self, slot: int, key: bytes, value: bytes, ttl: int) -> int:
        """As ``set``, but a record keeps its time to live."""
        _, version, left = self.read(slot, key)
        return self.set(slot, key, value, (max(left, 0) if version else ttl))

    def counted(self, slot: int, key: bytes, delta: int) -> bytes | Code:
        try:
            before = int((self.read(slot, key)[0] or b"" if self.read(slot, key)[1] else b"0").decode())
        except ValueError:
            return Code.NOT_A_NUMBER
        return b"%d" % (before + delta) if -(2**63) <= before + delta < 2**63 else Code.OUT_OF_RANGE

    def write(self, op: Write) -> Result:
        if isinstance(op, Transact):
            return self.transact(op)
        assert isinstance(op, KeyWrite)
        slot, key = op.slot, op.key
        value, version, left = self.read(slot, key)
        if isinstance(op, Put | Delete | Touch) and op.expect not in (-1, version):
            return Result(Code.CONDITION_FAILED, version)
        if isinstance(op, Cas | CompareAndDelete) and op.expected != value:
            return Result(Code.CONDITION_FAILED, version)
        if isinstance(op, Put | Cas):
            return Result(Code.OK, self.set(slot, key, op.value, op.ttl))
        if isinstance(op, Append):
            whole = (value or b"") + op.value
            return Result(Code.OK, self.change(slot, key, whole, op.ttl), number=len(whole))
        if isinstance(op, Increment):
            after = self.counted(slot, key, op.delta)
            if isinstance(after, Code):
                return Result(after)
            return Result(Code.OK, self.change(slot, key, after, op.ttl), after)
        if isinstance(op, Touch):
            if version and value is not None and (op.ttl or left >= 0):
                self.tell(slot, key, Change.TOUCH)
                self.records[slot, key] = value, version, self.time + op.ttl if op.ttl else 0
            return Result(Code.OK, version)
        if version:
            self.remove(slot, key, Change.DELETE)
        if isinstance(op, GetAndDelete) and version:
            return Result(Code.OK, version, value, left)
        return Result(Code.OK, version)

    def transact(self, op: Transact) -> Result:
        """On a copy, which is kept if all went well."""
        slot = op.slot
        for step in (*op.steps, *op.otherwise):
            self.bury(slot, step.key)
        before = dict(self.records), dict(self.counters)
        events = self.events.setdefault(slot, [])
        first = len(events)
        succeeded = all(
            self.read(slot, check.key)[1] == check.expect
            if check.value is None
            else self.read(slot, check.key)[0] == check.value
            for check in op.checks
        )
        told: list[tuple[int, bytes | None, int]] = []
        for step in op.steps if succeeded else op.otherwise:
            value, version, left = self.read(slot, step.key)
            if isinstance(step, GetStep):
                told.append((version, value, left))
            elif isinstance(step, PutStep):
                told.append((self.set(slot, step.key, step.value, step.ttl), None, -1))
            elif isinstance(step, DeleteStep):
                if version:
                    self.remove(slot, step.key, Change.DELETE)
                told.append((version, None, -1))
            else:
                after = self.counted(slot, step.key, step.delta)
                if isinstance(after, Code):
                    self.records, self.counters = before
                    del events[first:]
                    return Result(after)
                told.append((self.change(slot, step.key, after, step.ttl), after, -1))
        events[first:-1] = [event._replace(more=True) for event in events[first:-1]]
        return Result(Code.OK, answer=TransactionAnswer(succeeded, tuple(told), self.counters.get(slot, 0)))


DELTAS = st.sampled_from([1, -3, 2**63 - 1, -(2**63)])
_TTLS = st.sampled_from([0, 5])
_KEY = st.sampled_from(KEYS)
transactions = (
    st.lists(
        st.builds(GetStep, _KEY)
        | st.builds(PutStep, _KEY, st.sampled_from(VALUES), _TTLS)
        | st.builds(DeleteStep, _KEY)
        | st.builds(IncrementStep, _KEY, DELTAS, _TTLS),
        max_size=4,
    )
    .map(tuple)
    .filter(lambda steps: written_twice(steps) is None)
)


@st.composite
def writes(draw: st.DrawFn) -> Write:
    who = draw(st.integers(0, 3))
    seq = draw(st.integers(1, 8))
    slot, key = draw(st.integers(0, SLOTS)), draw(st.sampled_from(KEYS))
    name: dict[str, Any] = {"client": who.to_bytes(16, "big"), "seq": seq, "first": draw(st.integers(0, seq))}
    if not who:
        name = {}
    expect = draw(st.sampled_from([-1, -1, 0, 1, 2, 3]))
    value, ttl = draw(st.sampled_from(VALUES)), draw(st.sampled_from([0, 0, 1, 5, 1000]))
    match draw(st.integers(0, 11)):
        case 0 | 1 | 2:
            return Put(slot, key, value, expect, ttl, **name)
        case 3:
            return Delete(slot, key, expect, **name)
        case 4:
            return Cas(slot, key, value, draw(st.sampled_from([None, *VALUES])), ttl, **name)
        case 5:
            return CompareAndDelete(slot, key, value, **name)
        case 6:
            return Increment(slot, key, draw(DELTAS), ttl, **name)
        case 7:
            return Append(slot, key, value, ttl, **name)
        case 8:
            return Touch(slot, key, ttl, expect, **name)
        case 9:
            return GetAndDelete(slot, key, **name)
    checks = st.builds(Check, st.sampled_from(KEYS), st.integers(0, 3)) | st.builds(
        Check, st.sampled_from(KEYS), st.just(0), st.sampled_from(VALUES)
    )
    return Transact(slot, tuple(draw(st.lists(checks, max_size=2))), draw(transactions), draw(transactions), **name)


Step = tuple[str, int, list[Write]]

steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("entry"), st.sampled_from([0, 0, 1, 4, 900, IDLE // 2, IDLE]), st.lists(writes(), max_size=6)),
    st.tuples(st.just("snapshot"), st.just(0), st.just([])),
    st.tuples(st.just("close"), st.integers(0, 3), st.just([])),
    st.tuples(st.just("restore"), st.just(0), st.just([])),
)


def genesis() -> Store:
    store = Store()
    store.apply(0, [Genesis(tuple(range(SLOTS)))])
    return store


def matches(result: Result, wanted: Result | None) -> bool:
    if wanted is None:
        return result.code == Code.SESSION_EXPIRED
    # Why it failed is for people.
    return result.code == wanted.code and (replace(result, detail="") == wanted or result.code == Code.MOVED)


@settings(derandomize=True, max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=25))
def test_store_does_what_the_model_does(history: list[Step]) -> None:
    store, replica, model = genesis(), genesis(), Model()
    open_ones: list[tuple[StoreSnapshot, bytes]] = []
    for action, number, ops in history:
        if action == "entry":
            now = model.time + number
            results = store.apply(*logged(now, ops))
            wanted = model.entry(now, ops)
            assert all(matches(*pair) for pair in zip(results, wanted, strict=True)), (results, wanted)
            assert replica.apply(*logged(now, again(ops))) == results
        elif action == "snapshot":
            open_ones.append((store.snapshot(), store.digest()))
        elif action == "close" and number < len(open_ones):
            snapshot, digest = open_ones.pop(number)
            assert restored(snapshot.chunks()).digest() == digest
        elif action == "restore":
            store = restored(store.snapshot().chunks())
        assert store.digest() == replica.digest()
        assert in_order(store)
        for slot in range(SLOTS):
            found = events_in(store, slot)
            assert found == events_in(replica, slot)
            assert found == model.events.get(slot, [])[model.counters.get(slot, 0) - len(found) :]
        for slot in range(SLOTS):
            for key in KEYS:
                value, version, ttl = model.read(slot, key)
                assert store.read(slot, key) == Result(0, version, value, ttl)
        assert store.stats().sessions == len(model.used)
        assert {slot: store._slots[slot].floor for slot in range(SLOTS) if store._slots[slot].floor} == model.floors
        # Nothing that has expired is left behind, as no entry here removes more than it may.
        assert store.stats().records == sum(1 for slot, key in model.records if model.read(slot, key)[1])
        assert store.stats().bytes == sum(
            len(key) + len(model.records[slot, key][0]) for slot, key in model.records if model.read(slot, key)[1]
        )
        due = [expires for (slot, key), (_, _, expires) in model.records.items() if expires > model.time]
        assert store.next_expiry() == min(due, default=None)
    for snapshot, digest in open_ones:
        assert restored(snapshot.chunks()).digest() == digest
    assert [slot.pins for slot in store._slots.values()] == [0] * SLOTS


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.tuples(writes(), st.integers(1, 4)), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_every_request_executes_at_most_once(requests: list[tuple[Write, int]], random: Random) -> None:
    """Versions count executions: whatever the copies and their order, each request id raises a counter once at most."""
    numbered = [
        Put(0, b"k", b"v", client=b"c" * 16, seq=i + 1, first=min(op.first, i + 1))
        for i, (op, _) in enumerate(requests)
    ]
    copies = [op for op, (_, count) in zip(numbered, requests, strict=True) for _ in range(count)]
    random.shuffle(copies)
    store = genesis()
    answers: dict[int, set[int]] = {}
    for op in copies:
        (result,) = store.apply(1, [op])
        if result.code == Code.OK:
            answers.setdefault(op.seq, set()).add(result.version)
    assert all(len(versions) == 1 for versions in answers.values())
    assert store._slots[0].counter == len(answers)
