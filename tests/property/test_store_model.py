"""Guarantee: for any history of entries, the store does what a naive model does; snapshots and replicas never disagree.

The model knows the rules only: a dict of records, a dict of outcomes per (slot, client), linear searches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftkv import limits
from raftkv.commands.base import Write
from raftkv.commands.group import Genesis
from raftkv.commands.records import Cas, Delete, Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.store.records import Store
from raftkv.store.snapshot import StoreSnapshot
from tests.store_helpers import again, in_order, restored

SLOTS = 3
IDLE = limits.SESSION_IDLE * 1000
KEYS = [b"a", b"b", b"c"]
VALUES = [b"", b"1", b"2"]


@dataclass
class Model:
    time: int = 0
    records: dict[tuple[int, bytes], tuple[bytes, int, int]] = field(default_factory=dict)
    counters: dict[int, int] = field(default_factory=dict)
    outcomes: dict[tuple[int, bytes], dict[int, Result]] = field(default_factory=dict)
    firsts: dict[tuple[int, bytes], int] = field(default_factory=dict)
    used: dict[tuple[int, bytes], int] = field(default_factory=dict)
    floors: dict[int, bytes] = field(default_factory=dict)

    def entry(self, now: int, ops: list[Write]) -> list[Result | None]:
        self.time = max(self.time, now)
        results = [self.command(op) for op in ops]
        for (slot, client), last in list(self.used.items()):
            if last <= self.time - IDLE:
                del self.used[slot, client], self.outcomes[slot, client], self.firsts[slot, client]
                self.floors[slot] = max(self.floors.get(slot, b""), client)
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
            self.outcomes[name][op.seq] = self.write(op)
        return self.outcomes[name][op.seq]

    def read(self, slot: int, key: bytes) -> tuple[bytes | None, int, int]:
        value, version, expires = self.records.get((slot, key), (b"", 0, 0))
        if version == 0 or 0 < expires <= self.time:
            return None, 0, -1
        return value, version, expires - self.time if expires else -1

    def write(self, op: Write) -> Result:
        value, version, _ = self.read(op.slot, op.key)
        assert isinstance(op, Put | Delete | Cas)
        matches = value == op.expected if isinstance(op, Cas) else op.expect in (-1, version)
        if not matches:
            return Result(Code.CONDITION_FAILED, version)
        if isinstance(op, Delete):
            if version:
                self.counters[op.slot] = self.counters.get(op.slot, 0) + 1
                del self.records[op.slot, op.key]
            return Result(Code.OK, version)
        new = self.counters[op.slot] = self.counters.get(op.slot, 0) + 1
        self.records[op.slot, op.key] = op.value, new, self.time + op.ttl if op.ttl else 0
        return Result(Code.OK, new)


@st.composite
def writes(draw: st.DrawFn) -> Write:
    who = draw(st.integers(0, 3))
    seq = draw(st.integers(1, 8))
    slot, key = draw(st.integers(0, SLOTS)), draw(st.sampled_from(KEYS))
    name: dict[str, Any] = {"client": who.to_bytes(16, "big"), "seq": seq, "first": draw(st.integers(0, seq))}
    if not who:
        name = {}
    expect = draw(st.sampled_from([-1, -1, 0, 1, 2, 3]))
    kind = draw(st.sampled_from([Put, Put, Delete, Cas]))
    if kind is Delete:
        return Delete(slot, key, expect, **name)
    value, ttl = draw(st.sampled_from(VALUES)), draw(st.sampled_from([0, 0, 1, 5, 1000]))
    if kind is Put:
        return Put(slot, key, value, expect, ttl, **name)
    return Cas(slot, key, value, draw(st.sampled_from([None, *VALUES])), ttl, **name)


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
    return result.code == wanted.code and (result == wanted or result.code == Code.MOVED)


@settings(derandomize=True, max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=25))
def test_store_does_what_the_model_does(history: list[Step]) -> None:
    store, replica, model = genesis(), genesis(), Model()
    open_ones: list[tuple[StoreSnapshot, bytes]] = []
    for action, number, ops in history:
        if action == "entry":
            now = model.time + number
            results = store.apply(now, ops)
            wanted = model.entry(now, ops)
            assert all(matches(*pair) for pair in zip(results, wanted, strict=True)), (results, wanted)
            assert replica.apply(now, again(ops)) == results
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
        Put(0, op.key, b"v", client=b"c" * 16, seq=i + 1, first=min(op.first, i + 1))
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
