"""Guarantee: whatever a program asks of a cluster, one call after the other, a dict would answer the same: of a real
one, and of the one in memory that programs test with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from raftkv import Client, ConditionFailed, CounterOverflow, NotANumber, RaftKVError, Record
from raftkv.clock import SystemClock
from raftkv.testing import FakeClient, LocalCluster
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


class Dict:
    """name -> (value, version, whether it expires). ``number``: the slot's mutations."""

    def __init__(self, number: int) -> None:
        self.records: dict[str, tuple[bytes, int, bool]] = {}
        self.number = number

    def value(self, name: str) -> bytes | None:
        return self.records[name][0] if name in self.records else None

    def version(self, name: str) -> int:
        return self.records[name][1] if name in self.records else 0

    def write(self, name: str, value: bytes, ttl: float | None) -> int:
        self.number += 1
        self.records[name] = value, self.number, ttl is not None
        return self.number

    def change(self, name: str, value: bytes, ttl: float | None) -> int:
        """A record that is there keeps its time to live."""
        expires = self.records[name][2] if name in self.records else ttl is not None
        return self.write(name, value, 1.0 if expires else None)

    def remove(self, name: str) -> bool:
        self.number += name in self.records
        return self.records.pop(name, None) is not None

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
        self.model = Dict(self.kv.txn().get(self.tag).commit().number)

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
        del self.model.records[name]
        # How an expiry counts is not this test's.
        self.model.number = self.kv.txn().get(self.tag).commit().number

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
        found = self.kv.get_many(self.tag + name for name in "cba")
        assert all(self._is(name, record) for name, record in zip("cba", found, strict=True))

    @rule(names=st.lists(NAMES, unique=True))
    def delete_many(self, names: list[str]) -> None:
        keys = [self.tag + name for name in names]
        self._same(lambda: self.kv.delete_many(keys), lambda: [self.model.remove(name) for name in names])

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
            before = dict(model.records), model.number
            try:
                return holds, [self._told(*step) for step in (steps if holds else otherwise)], model.number
            except RaftKVError:
                model.records, model.number = before
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


@contextmanager
def real() -> Iterator[Client]:
    with LocalCluster(nodes=1, groups=2) as cluster, Client(cluster.endpoints, timeout=PATIENCE) as kv:
        yield kv


@pytest.mark.parametrize("client", [real, FakeClient], ids=["real", "in memory"])
def test_programs(client: Callable[[], AbstractContextManager[Client]]) -> None:
    usual = settings(
        derandomize=True,
        max_examples=25,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with client() as kv:
        Program.kv, before = kv, next(Program.numbers)
        run_state_machine_as_test(Program, settings=usual)
        assert next(Program.numbers) > before + 20
