"""Guarantee: whatever a program asks of a cluster, one call after the other, a dict would answer the same: of a real
one, of one whose slots move meanwhile, and of the one in memory that programs test with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from raftkv import Client, ConditionFailed, CounterOverflow, NotANumber, RaftKVError, Record, Watch
from raftkv.client.admin import AdminClient
from raftkv.clock import SystemClock
from raftkv.testing import FakeClient, LocalCluster
from raftkv.v1 import admin_pb2
from tests.waiting import PATIENCE, until

NAMES = st.sampled_from("abc")
VALUES = st.sampled_from([b"", b"7", b"-12", b"text", str(2**63 - 1).encode()])
TTLS = st.sampled_from([None, 3600.0])
DELTAS = st.sampled_from([1, -5, 2**62])
STEPS = st.lists(
    st.tuples(st.sampled_from(["get", "put", "delete", "incr"]), NAMES, VALUES, DELTAS), max_size=4
).filter(
    lambda steps: len({name for verb, name, *_ in steps if verb != "get"}) == sum(verb != "get" for verb, *_ in steps)
)


Happened = tuple[str, str, bytes | None]


class Dict:
    """name -> (value, version, whether it expires). ``number``: the slot's mutations. ``events``: what a watch has not
    told yet, in order; those of one list in any."""

    def __init__(self, number: int) -> None:
        self.records: dict[str, tuple[bytes, int, bool]] = {}
        self.number = number
        self.events: list[list[Happened]] = []

    def value(self, name: str) -> bytes | None:
        return self.records[name][0] if name in self.records else None

    def version(self, name: str) -> int:
        return self.records[name][1] if name in self.records else 0

    def write(self, name: str, value: bytes, ttl: float | None) -> int:
        self.number += 1
        self.records[name] = value, self.number, ttl is not None
        self.events.append([("put", name, value)])
        return self.number

    def change(self, name: str, value: bytes, ttl: float | None) -> int:
        """A record that is there keeps its time to live."""
        expires = self.records[name][2] if name in self.records else ttl is not None
        return self.write(name, value, 1.0 if expires else None)

    def remove(self, name: str, change: str = "delete") -> bool:
        if name not in self.records:
            return False
        del self.records[name]
        self.number += 1
        self.events.append([(change, name, None)])
        return True

    def remove_all(self, names: Sequence[str]) -> list[bool]:
        """In any order."""
        before = len(self.events)
        done = [self.remove(name) for name in names]
        self.events[before:] = [[one for batch in self.events[before:] for one in batch]]
        return done

    def counted(self, name: str, delta: int) -> int:
        try:
            after = int((self.value(name) if name in self.records else b"0") or b"?") + delta
        except ValueError:
            raise NotANumber from None
        if not -(2**63) <= after < 2**63:
            raise CounterOverflow
        return after


class Program(RuleBasedStateMachine):
    kv: ClassVar[Client]
    numbers: ClassVar[Iterator[int]] = count()

    @initialize()
    def begin(self) -> None:
        self.tag = f"{{program {next(self.numbers)}}}"
        self.slot = self.kv.slot_of(self.tag)
        self.model = Dict(self.kv.txn().get(self.tag).commit().number)
        with self.kv.watch(prefix=self.tag) as watch:
            assert next(watch).type == "live"
            self.token = watch.token

    def _same(self, ask: Callable[[], Any], answer: Callable[[], Any]) -> None:
        """Both return the same, or fail in the same way."""
        failure: RaftKVError | None = None
        try:
            wanted = answer()
        except RaftKVError as error:
            failure = error
        if failure is None:
            assert ask() == wanted
        else:
            with pytest.raises(type(failure)) as caught:
                ask()
            assert getattr(caught.value, "version", 0) == getattr(failure, "version", 0)
        for name in "abc":
            self._is(name, self.kv.get(self.tag + name))

    def _is(self, name: str, record: Record | None) -> bool:
        assert (None if record is None else record.value) == self.model.value(name)
        if record is not None:
            assert (record.version, record.expires_at is not None) == self.model.records[name][1:]
        return True

    def _met(self, name: str, version: int) -> None:
        if self.model.version(name) != version:
            raise ConditionFailed("", self.model.version(name))

    def _a_version(self, name: str, off: int) -> int:
        return max(1, self.model.version(name) + off)

    @rule(name=NAMES, value=VALUES, ttl=TTLS)
    def put(self, name: str, value: bytes, ttl: float | None) -> None:
        self._same(lambda: self.kv.put(self.tag + name, value, ttl=ttl)[0], lambda: self.model.write(name, value, ttl))

    @rule(name=NAMES, value=VALUES)
    def a_short_life(self, name: str, value: bytes) -> None:
        clock = SystemClock()
        began = clock.now()
        self.kv.put(self.tag + name, value, ttl=0.05)
        until(lambda: self.kv.get(self.tag + name) is None, "it expires")
        assert clock.now() - began >= 0.05, "never early"
        self.model.write(name, value, 0.05)
        # It takes its number when it goes, which is a moment after nobody sees it any more.
        self.model.remove(name, "expire")
        until(lambda: self.kv.txn().get(self.tag).commit().number == self.model.number, "it goes")

    @rule(name=NAMES, value=VALUES, ttl=TTLS)
    def create(self, name: str, value: bytes, ttl: float | None) -> None:
        def answer() -> int:
            self._met(name, 0)
            return self.model.write(name, value, ttl)

        self._same(lambda: self.kv.create(self.tag + name, value, ttl=ttl)[0], answer)

    @rule(name=NAMES, value=VALUES, off=st.sampled_from([0, 0, -1, 1]))
    def update(self, name: str, value: bytes, off: int) -> None:
        version = self._a_version(name, off)

        def answer() -> int:
            self._met(name, version)
            return self.model.write(name, value, None)

        self._same(lambda: self.kv.update(self.tag + name, value, version=version)[0], answer)

    @rule(name=NAMES, expected=VALUES | st.none(), value=VALUES)
    def cas(self, name: str, expected: bytes | None, value: bytes) -> None:
        def answer() -> tuple[bool, int]:
            if self.model.value(name) != expected:
                return False, self.model.version(name)
            return True, self.model.write(name, value, None)

        self._same(lambda: self.kv.cas(self.tag + name, expected, value), answer)

    @rule(name=NAMES, value=VALUES | st.none(), off=st.sampled_from([None, 0, 1]))
    def delete(self, name: str, value: bytes | None, off: int | None) -> None:
        version = None if off is None or value is not None else self._a_version(name, off)

        def answer() -> bool:
            if version is not None:
                self._met(name, version)
            if value is not None and self.model.value(name) != value:
                raise ConditionFailed("", self.model.version(name))
            return self.model.remove(name)

        self._same(lambda: self.kv.delete(self.tag + name, if_version=version, if_value=value), answer)

    @rule(name=NAMES, delta=DELTAS, ttl=TTLS)
    def incr(self, name: str, delta: int, ttl: float | None) -> None:
        def answer() -> int:
            after = self.model.counted(name, delta)
            self.model.change(name, b"%d" % after, ttl)
            return after

        self._same(lambda: self.kv.incr(self.tag + name, delta, ttl=ttl), answer)

    @rule(name=NAMES, value=VALUES, ttl=TTLS)
    def append(self, name: str, value: bytes, ttl: float | None) -> None:
        def answer() -> tuple[int, int]:
            whole = (self.model.value(name) or b"") + value
            return len(whole), self.model.change(name, whole, ttl)

        self._same(lambda: self.kv.append(self.tag + name, value, ttl=ttl), answer)

    @rule(name=NAMES, ttl=TTLS, off=st.sampled_from([None, 0, 1]))
    def touch(self, name: str, ttl: float | None, off: int | None) -> None:
        version = None if off is None else self._a_version(name, off)

        def ask() -> bool:
            if ttl is None:
                return self.kv.persist(self.tag + name, if_version=version)
            return self.kv.touch(self.tag + name, ttl, if_version=version)

        def answer() -> bool:
            if version is not None:
                self._met(name, version)
            if name in self.model.records:
                value, version_now, expires = self.model.records[name]
                self.model.number += ttl is not None or expires
                self.model.records[name] = value, version_now, ttl is not None
            return name in self.model.records

        self._same(ask, answer)

    @rule(name=NAMES)
    def get_and_delete(self, name: str) -> None:
        def ask() -> bytes | None:
            record = self.kv.get_and_delete(self.tag + name)
            self._is(name, record)
            self.model.remove(name)
            return None if record is None else record.value

        value = self.model.value(name)
        self._same(ask, lambda: value)

    @rule(values=st.dictionaries(NAMES, VALUES, max_size=3), ttl=TTLS)
    def put_and_get_many(self, values: dict[str, bytes], ttl: float | None) -> None:
        names = list(values)
        written = self.kv.put_many({self.tag + name: value for name, value in values.items()}, ttl=ttl)
        assert sorted(one.version - self.model.number for one in written) == list(range(1, len(names) + 1))
        self.model.number += len(names)
        for name, one in zip(names, written, strict=True):
            self.model.records[name] = values[name], one.version, ttl is not None
        inverse = {one.version: name for name, one in zip(names, written, strict=True)}
        self.model.events += [[("put", name, values[name])] for _, name in sorted(inverse.items())]
        found = self.kv.get_many(self.tag + name for name in "cba")
        assert all(self._is(name, record) for name, record in zip("cba", found, strict=True))

    @rule(names=st.lists(NAMES, unique=True))
    def delete_many(self, names: list[str]) -> None:
        keys = [self.tag + name for name in names]
        self._same(lambda: self.kv.delete_many(keys), lambda: self.model.remove_all(names))

    @rule(reverse=st.booleans(), limit=st.sampled_from([None, 1, 2]), keys_only=st.booleans())
    def scan(self, reverse: bool, limit: int | None, keys_only: bool) -> None:
        names = sorted(self.model.records, reverse=reverse)[:limit]
        found = list(self.kv.scan(prefix=self.tag, reverse=reverse, limit=limit, keys_only=keys_only))
        assert [record.key.decode() for record in found] == [self.tag + name for name in names]
        assert keys_only or all(self._is(name, record) for name, record in zip(names, found, strict=True))

    @rule(first=NAMES, behind=NAMES)
    def count(self, first: str, behind: str) -> None:
        within = [name for name in self.model.records if first <= name < behind]
        assert self.kv.count(start=self.tag + first, end=self.tag + behind) == len(within)

    @rule(name=st.sampled_from(["", "a"]))
    def delete_prefix(self, name: str) -> None:
        gone = [one for one in self.model.records if one.startswith(name)]
        assert self.kv.delete_prefix(self.tag + name) == len(gone)
        self.model.remove_all(gone)

    @rule()
    def watch(self) -> None:
        """From where the last one ended: all that has happened since, once and in order."""
        with self.kv.watch(prefix=self.tag, start=self.token) as watch:
            for batch in self.model.events:
                assert sorted(batch) == sorted(self._change(watch) for _ in batch)
            self.model.events.clear()
            self.token = watch.token

    def _change(self, watch: Watch) -> Happened:
        event = next(one for one in watch if one.type != "live")
        return event.type, event.key.decode().removeprefix(self.tag), event.value

    @rule()
    def watch_with_what_is_there(self) -> None:
        with self.kv.watch(prefix=self.tag, initial=True) as watch:
            seen = {}
            for event in watch:
                if event.type == "live":
                    break
                assert event.type in ("image", "initial", "whole")
                if event.type == "initial":
                    seen[event.key.decode().removeprefix(self.tag)] = event.value, event.version
        assert seen == {name: record[:2] for name, record in self.model.records.items()}

    @rule(
        checks=st.lists(st.tuples(NAMES, st.sampled_from(["version", "value", "absent"]), st.booleans())),
        steps=STEPS,
        otherwise=STEPS,
    )
    def transact(self, checks: list[tuple[str, str, bool]], steps: list[Any], otherwise: list[Any]) -> None:
        """A check is of what is there, or of something else."""
        model, txn, holds = self.model, self.kv.txn().get(self.tag), True
        for name, what, right in checks[:3]:
            match what:
                case "version":
                    txn.check(self.tag + name, version=model.version(name) + (not right))
                    holds &= right
                case "value":
                    value = model.value(name) if right else b"another"
                    txn.check(self.tag + name, value=b"none" if value is None else value)
                    holds &= model.value(name) == (b"none" if value is None else value)
                case _:
                    txn.check(self.tag + name, absent=True)
                    holds &= name not in model.records
        for step in steps:
            self._add(txn, *step)
        txn.otherwise().get(self.tag)
        for step in otherwise:
            self._add(txn, *step)

        def ask() -> tuple[bool, list[Any], int]:
            done = txn.commit()
            told = [(one.value, one.version) if isinstance(one, Record) else one for one in done.results[1:]]
            return (
                done.succeeded,
                [one[0] if isinstance(one, tuple) and len(one) == 1 else one for one in told],
                done.number,
            )

        def answer() -> tuple[bool, list[Any], int]:
            before = dict(model.records), model.number, list(model.events)
            try:
                return holds, [self._told(*step) for step in (steps if holds else otherwise)], model.number
            except RaftKVError:
                model.records, model.number, model.events = before
                raise

        self._same(ask, answer)

    def _add(self, txn: Any, verb: str, name: str, value: bytes, delta: int) -> None:
        more = {"put": (value,), "incr": (delta,)}.get(verb, ())
        getattr(txn, verb)(self.tag + name, *more)

    def _told(self, verb: str, name: str, value: bytes, delta: int) -> Any:
        match verb:
            case "get":
                return self.model.records[name][:2] if name in self.model.records else None
            case "put":
                return self.model.write(name, value, None)
            case "delete":
                return self.model.remove(name)
        after = self.model.counted(name, delta)
        self.model.change(name, b"%d" % after, None)
        return after


class MovingProgram(Program):
    endpoints: ClassVar[str]
    moved: ClassVar[int] = 0

    @rule()
    def move(self) -> None:
        """The slot goes to the other group, while the program goes on."""
        asyncio.run(self._move())

    async def _move(self) -> None:
        async with AdminClient(self.endpoints, timeout=PATIENCE) as admin:
            state = await admin.state()
            type(self).moved = sum(move.committed for move in state.finished)
            if state.job is None or state.job.ended:
                group = state.map.owners[self.slot]
                move = admin_pb2.PlannedMove(slots=[self.slot], source=group, target=3 - group)
                plan = admin_pb2.StartPlan(epoch=state.map.epoch, moves=[move], concurrency=1)
                await admin.change(admin_pb2.ChangeRequest(start_plan=plan))


@contextmanager
def real() -> Iterator[Client]:
    with LocalCluster(nodes=1, groups=2) as cluster, Client(cluster.endpoints, timeout=PATIENCE) as kv:
        MovingProgram.endpoints = cluster.endpoints
        yield kv


@pytest.mark.parametrize(
    ("client", "program"),
    [(real, Program), (real, MovingProgram), (FakeClient, Program)],
    ids=["real", "moving", "in memory"],
)
def test_programs(client: Callable[[], AbstractContextManager[Client]], program: type[Program]) -> None:
    usual = settings(
        derandomize=True,
        max_examples=25,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with client() as kv:
        Program.kv, before = kv, next(Program.numbers)
        run_state_machine_as_test(program, settings=usual)
        assert next(Program.numbers) > before + 20
    assert program is not MovingProgram or MovingProgram.moved > 5
