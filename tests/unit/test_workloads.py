"""Guarantee: each workload names what only it can know to be wrong, and accuses no good run."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from faults.check.history import OPEN_END, History, Kind, Operation, Outcome
from faults.check.linearizability import Verdict
from faults.check.numbered import check_key
from faults.check.problem import CheckProblem
from faults.check.register import Register
from faults.sim.loop import SimLoop, simulate
from faults.workloads.kinds import WORKLOADS, Counter, Registers, Retry, Ttl, UniqueSet, Workload
from faults.workloads.recorder import Recorder
from raftkv import AsyncClient
from raftkv.client.arguments import encode_value
from raftkv.client.cursors import Cursor
from raftkv.client.transaction import AsyncTransaction, TransactionBuilder
from raftkv.client.types import CasResult, Record, TransactionResult, WatchEvent, WriteResult
from raftkv.commands.transactions import GetStep, IncrementStep, PutStep, Step
from raftkv.errors import ConditionFailed


class Past:
    """A history in the making: one operation after the other."""

    def __init__(self) -> None:
        self.history = History()

    def put(self, key: str, outcome: Outcome = Outcome.OK, *, done: bool = True, **more: Any) -> Operation:
        return self._add(Kind.PUT, key, outcome, done, **{"value": "v", **more})

    def cas(self, key: str, outcome: Outcome = Outcome.OK, *, done: bool = True, **more: Any) -> Operation:
        return self._add(Kind.CAS, key, outcome, done, **{"value": "v", **more})

    def delete(self, key: str, outcome: Outcome = Outcome.OK, *, done: bool = True) -> Operation:
        return self._add(Kind.DELETE, key, outcome, done)

    def get(self, key: str, outcome: Outcome = Outcome.OK) -> Operation:
        return self._add(Kind.GET, key, outcome, False)

    def _add(self, kind: Kind, key: str, outcome: Outcome, done: bool, **more: Any) -> Operation:
        began = 2.0 * len(self.history.operations)
        one = self.history.begin("c1", kind, key, began)
        one.outcome, one.done = outcome, done and outcome is Outcome.OK
        one.ended = began + 1.0 if outcome in (Outcome.OK, Outcome.REFUSED) else OPEN_END
        one.answered = OPEN_END if outcome is Outcome.OPEN else began + 1.0
        for name, value in more.items():
            setattr(one, name, value)
        return one


def there(*keys: str, value: str = "v") -> dict[str, Record]:
    """What a scan found at the end."""
    return {key: Record(key.encode(), value.encode(), 1) for key in keys}


def texts(problems: list[CheckProblem]) -> list[str]:
    return [problem.text for problem in problems]


@pytest.fixture
def past() -> Past:
    return Past()


# -- unique-set


def test_elements_that_were_added_once_and_are_there_are_no_problem(past: Past) -> None:
    past.put("s-a", expect=0)
    past.put("s-b", expect=0)
    past.get("s-b")
    assert texts(UniqueSet().problems(past.history, there("s-a", "s-b"))) == []


def test_an_acknowledged_element_that_is_gone_is_lost(past: Past) -> None:
    past.put("s-a", expect=0)
    lost = past.put("s-b", expect=0)
    assert texts(UniqueSet().problems(past.history, there("s-a"))) == [f"acknowledged element lost: {lost.describe()}"]


def test_an_element_in_whose_way_is_nobody_but_itself_was_added_twice(past: Past) -> None:
    twice = past.put("s-a", done=False, expect=0, version=1)
    assert texts(UniqueSet().problems(past.history, there("s-a"))) == [f"element added twice: {twice.describe()}"]
    assert len(texts(UniqueSet().problems(past.history, there()))) == 1


def test_a_refused_element_must_not_be_there(past: Past) -> None:
    refused = past.put("s-a", Outcome.REFUSED, expect=0)
    found = texts(UniqueSet().problems(past.history, there("s-a")))
    assert found == [f"element is there although it was refused: {refused.describe()}"]
    assert texts(UniqueSet().problems(past.history, there())) == []


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.OPEN])
def test_an_element_of_unknown_outcome_may_be_there_or_not(past: Past, outcome: Outcome) -> None:
    past.put("s-a", outcome, expect=0)
    assert texts(UniqueSet().problems(past.history, there("s-a"))) == []
    assert texts(UniqueSet().problems(past.history, there())) == []


def test_elements_are_told_from_the_keys_of_others_and_from_reads(past: Past) -> None:
    past.get("s-a")
    past.get("s-a", Outcome.REFUSED)
    past.put("r1", done=False, expect=4)
    past.put("n0", Outcome.REFUSED)
    past.put("o-c1-0")
    assert texts(UniqueSet().problems(past.history, there("s-a", "n0"))) == []


def test_each_broken_element_is_named(past: Past) -> None:
    past.put("s-a")
    past.put("s-b", done=False)
    past.put("s-c", Outcome.REFUSED)
    assert [one.split(":")[0] for one in texts(UniqueSet().problems(past.history, there("s-b", "s-c")))] == [
        "acknowledged element lost",
        "element added twice",
        "element is there although it was refused",
    ]


# -- counter


def increments(past: Past, key: str, *, sure: int = 0, unknown: int = 0, refused: int = 0, missed: int = 0) -> None:
    """Increments of ``key``; ``missed``: another was faster."""
    for outcome, done, count in (
        (Outcome.OK, True, sure),
        (Outcome.OK, False, missed),
        (Outcome.REFUSED, False, refused),
        (Outcome.UNKNOWN, False, unknown),
    ):
        for _ in range(count):
            past.get(key)
            past.cas(key, outcome, done=done)


@pytest.mark.parametrize(("count", "good"), [(2, False), (3, True), (4, False)])
def test_each_acknowledged_increment_counts_once_and_no_other_does(past: Past, count: int, good: bool) -> None:
    increments(past, "n0", sure=3, refused=2, missed=2)
    found = texts(Counter().problems(past.history, there("n0", value=str(count))))
    problem = f"n0 counts {count}, but 3 increments were acknowledged and 0 are unknown"
    assert found == ([] if good else [problem])


@pytest.mark.parametrize(("count", "good"), [(2, False), (3, True), (4, True), (5, True), (6, False)])
def test_an_increment_of_unknown_outcome_counts_once_or_not(past: Past, count: int, good: bool) -> None:
    increments(past, "n1", sure=3, unknown=2)
    found = texts(Counter().problems(past.history, there("n1", value=str(count))))
    assert found == ([] if good else [f"n1 counts {count}, but 3 increments were acknowledged and 2 are unknown"])


def test_an_increment_that_never_returned_counts_once_or_not(past: Past) -> None:
    past.cas("n0", Outcome.OPEN)
    assert texts(Counter().problems(past.history, there())) == []
    assert texts(Counter().problems(past.history, there("n0", value="1"))) == []
    assert len(texts(Counter().problems(past.history, there("n0", value="2")))) == 1


def test_a_counter_that_is_gone_counts_nothing(past: Past) -> None:
    assert texts(Counter().problems(past.history, there())) == []
    increments(past, "n0", unknown=1)
    assert texts(Counter().problems(past.history, there())) == []
    increments(past, "n0", sure=1)
    assert texts(Counter().problems(past.history, there())) == [
        "n0 counts 0, but 1 increments were acknowledged and 1 are unknown"
    ]


def test_a_counter_that_is_no_number_is_named(past: Past) -> None:
    increments(past, "n0", sure=1)
    assert texts(Counter().problems(past.history, there("n0", value="one"))) == ["n0 is not a number: b'one'"]


def test_counters_are_counted_apart(past: Past) -> None:
    increments(past, "n0", sure=2)
    increments(past, "n1", sure=1)
    swapped = there("n0", value="1") | there("n1", value="2")
    assert [one[:2] for one in texts(Counter().problems(past.history, swapped))] == ["n0", "n1"]


# -- retry


def test_a_client_alone_on_its_key_is_told_of_no_other_writer(past: Past) -> None:
    past.put("o-c1-0", expect=0, version=1)
    past.put("o-c1-0", expect=1, version=2)
    past.cas("o-c1-0")
    past.delete("o-c1-0")
    assert texts(Retry().problems(past.history, {})) == []


@pytest.mark.parametrize("kind", [Kind.PUT, Kind.CAS, Kind.DELETE])
def test_a_condition_that_fails_though_nobody_else_writes_is_named(past: Past, kind: Kind) -> None:
    """A lost reply, and the retry met the client's own write."""
    past.put("o-c1-0", expect=0, version=1)
    failed = {Kind.PUT: past.put, Kind.CAS: past.cas, Kind.DELETE: past.delete}[kind]("o-c1-0", done=False)
    assert texts(Retry().problems(past.history, {})) == [f"nobody else writes this key: {failed.describe()}"]


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.OPEN])
def test_an_earlier_write_of_unknown_outcome_explains_a_failed_condition(past: Past, outcome: Outcome) -> None:
    past.put("o-c1-0", outcome, expect=0)
    past.put("o-c1-0", done=False, expect=0)
    assert texts(Retry().problems(past.history, {})) == []


def test_what_is_unknown_of_another_key_or_later_or_a_read_explains_nothing(past: Past) -> None:
    past.put("o-c1-1", Outcome.UNKNOWN)
    past.get("o-c1-0", Outcome.REFUSED)
    past.put("o-c1-0", done=False, expect=0)
    past.put("o-c1-0", Outcome.UNKNOWN)
    assert len(texts(Retry().problems(past.history, {}))) == 1


def test_an_earlier_write_that_was_refused_explains_nothing(past: Past) -> None:
    past.put("o-c1-0", Outcome.REFUSED, expect=0)
    past.put("o-c1-0", done=False, expect=0)
    assert len(texts(Retry().problems(past.history, {}))) == 1


def test_refusals_and_the_keys_of_others_are_no_problem_of_retry(past: Past) -> None:
    past.put("o-c1-0", Outcome.REFUSED, expect=0)
    past.put("r0", done=False, expect=3)
    past.cas("n0", done=False)
    assert texts(Retry().problems(past.history, {})) == []


# -- ttl


def test_a_record_with_a_time_to_live_must_be_gone_in_the_end(past: Past) -> None:
    past.put("t0", ttl=0.5)
    past.put("t1", ttl=0.5)
    (found,) = texts(Ttl().problems(past.history, there("t1")))
    assert found.startswith("t1 should have expired: ")
    assert texts(Ttl().problems(past.history, there("r0", "s-t", "n0", "o-t-0", "f0", "p0"))) == []


def test_the_last_look_comes_when_all_times_to_live_are_over() -> None:
    """Otherwise a record that is still there would prove nothing."""
    rng, longest = random.Random(1), 0.0
    for _ in range(1000):
        longest = max(longest, Ttl()._ttl(rng))
    assert 0.0 < longest < Ttl.settle


# -- registers, and all of them


def test_registers_have_nothing_to_add_to_their_keys_histories(past: Past) -> None:
    past.put("r0", done=False, expect=3)
    assert texts(Registers().problems(past.history, there("r0"))) == []


class GoodLock:
    """Of somebody who never meets others."""

    lost = False

    def __init__(self, store: GoodStore, key: str) -> None:
        self._store = store
        self._key = key
        self.token = 0

    async def acquire(self, *, timeout: float) -> bool:
        self.token = (await self._store.put(self._key, "", ttl=None, if_version=0)).version
        return True

    async def __aenter__(self) -> None:
        assert self.token

    async def __aexit__(self, *_: object) -> None:
        await self._store.delete(self._key, if_version=self.token)


class GoodStore:
    """Stands for AsyncClient: a store that does what it promises, at once."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._records: dict[str, Record] = {}
        self._versions = 0
        self._events: list[WatchEvent] = []

    def all(self) -> dict[str, Record]:
        return {key: found for key in sorted(self._records) if (found := self._live(key)) is not None}

    async def slot_of(self, key: str) -> int:
        return 0

    @asynccontextmanager
    async def watch(self, *, prefix: str, start: str | None) -> AsyncGenerator[AsyncIterator[WatchEvent], None]:
        yield self._follow(prefix, self._cursor() if start is None else Cursor.of(start))

    async def _follow(self, prefix: str, cursor: Cursor) -> AsyncIterator[WatchEvent]:
        yield WatchEvent("live", b"", None, 0, -1, False, cursor)
        after = cursor.number(0) or 0
        while True:
            for event in [event for event in self._events if event.version > after]:
                after = event.version
                if event.key.startswith(prefix.encode()):
                    yield event
            await asyncio.sleep(0.1)

    def lock(self, name: str, *, ttl: float, holder: str) -> GoodLock:
        return GoodLock(self, f"{{lock:{name}}}queue:{holder}")

    def _cursor(self) -> Cursor:
        return Cursor("good", 256).at(0, self._versions)

    async def get(self, key: str, *, consistency: str, timeout: float | None = None) -> Record | None:
        return self._live(key)

    async def scan(
        self, *, prefix: str = "", start: str = "", end: str = "~", reverse: bool = False
    ) -> AsyncGenerator[Record, None]:
        found = [record for key, record in self.all().items() if key.startswith(prefix) and start <= key < end]
        for record in reversed(found) if reverse else found:
            yield record

    async def put(self, key: str, value: str, *, ttl: float | None, if_version: int | None) -> WriteResult:
        self._meet(key, if_version)
        return self._write(key, value, ttl)

    async def delete(self, key: str, *, if_version: int | None) -> bool:
        self._meet(key, if_version)
        was = self._live(key)
        self._records.pop(key, None)
        return was is not None

    async def cas(self, key: str, expected: str | None, value: str, *, ttl: float | None) -> CasResult:
        was = self._live(key)
        if (None if was is None else was.value.decode()) != expected:
            return CasResult(False, 0 if was is None else was.version)
        return CasResult(True, self._write(key, value, ttl).version)

    async def incr(self, key: str, *, resolve: bool) -> int:
        was = self._live(key)
        after = int((was.value if was is not None else b"0").decode()) + 1
        self._write(key, str(after), None)
        return after

    def txn(self) -> AsyncTransaction:
        return AsyncTransaction(self._commit, encode_value)

    async def _commit(self, txn: TransactionBuilder, *_: object) -> TransactionResult:
        done = all(
            (None if (was := self._live(check.key.decode())) is None else was.value) == check.value
            for check in txn.checks
        )
        told = [self._do(step) for step in (txn.steps if done else txn.instead)]
        return TransactionResult(done, tuple(told), self._versions)

    def _do(self, step: Step) -> Any:
        key = step.key.decode()
        was = self._live(key)
        match step:
            case GetStep():
                return was
            case PutStep():
                return self._write(key, step.value.decode(), None)
            case IncrementStep():
                after = int((was.value if was is not None else b"0").decode()) + step.delta
                self._write(key, str(after), None)
                return after
        self._versions += was is not None
        self._records.pop(key, None)
        return was is not None

    def _live(self, key: str) -> Record | None:
        found = self._records.get(key)
        if found is None or (found.expires_at is not None and self._loop.time() >= found.expires_at):
            return None
        return found

    def _meet(self, key: str, expect: int | None) -> None:
        was = self._live(key)
        version = 0 if was is None else was.version
        if expect is not None and version != expect:
            raise ConditionFailed("no", version)

    def _write(self, key: str, value: str, ttl: float | None) -> WriteResult:
        self._versions += 1
        expires = None if ttl is None else self._loop.time() + ttl
        record = self._records[key] = Record(key.encode(), value.encode(), self._versions, expires)
        self._events.append(WatchEvent("put", record.key, record.value, record.version, 0, False, self._cursor()))
        return WriteResult(self._versions)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_work_on_a_store_that_keeps_its_promises_finds_nothing(name: str) -> None:
    """And what the workload writes is what its own problems and the checker look at."""

    async def main(loop: SimLoop) -> tuple[Workload, History, dict[str, Record]]:
        workload, history, store = WORKLOADS[name](), History(), GoodStore(loop)
        clients = [Recorder(cast(AsyncClient, store), f"c{one}", history, loop.time) for one in (1, 2)]
        rng = random.Random(1)
        for _ in range(200):
            for client in clients:
                await workload.step(client, rng)
        loop.now += workload.settle
        return workload, history, store.all()

    workload, history, last = simulate(main)
    assert len(history.operations) >= 300
    assert history.count(Outcome.OK) == len(history.operations)
    assert workload.problems(history, last) == []
    for _, operations in history.by_key():
        assert check_key(operations, Register()).verdict is Verdict.LINEARIZABLE
    if name in ("unique-set", "counter", "bank"):
        assert workload.problems(history, {}) != [], "the same work, had the store lost everything"


@pytest.mark.parametrize("name", sorted(set(WORKLOADS) - {"increments", "locks", "transactions"}))
def test_nobody_else_writes_the_same_value(name: str) -> None:
    """The checker needs values that tell who wrote them; counters are told apart otherwise."""

    async def main(loop: SimLoop) -> History:
        workload, history, store = WORKLOADS[name](), History(), GoodStore(loop)
        rng = random.Random(2)
        for number in range(200):
            client = Recorder(cast(AsyncClient, store), f"c{number % 3}", history, loop.time)
            await workload.step(client, rng)
        return history

    history = simulate(main)
    written = [(one.key, one.value) for one in history.operations if one.value is not None and one.done]
    assert len(written) > 20
    assert len(set(written)) == len(written)
