"""Guarantee: a write that is sent several times takes effect once, or its retry is refused; never twice."""

import pytest
from msgspec.structs import replace

from raftkv import limits
from raftkv.commands.base import Command
from raftkv.commands.group import Genesis, Tick
from raftkv.commands.records import Cas, Delete, Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.store.records import Store

IDLE = limits.SESSION_IDLE * 1000
TICK = Tick()


def client(number: int) -> bytes:
    return number.to_bytes(16, "big")


def make() -> Store:
    store = Store()
    store.apply(1, [Genesis((0, 1))])
    return store


def put(seq: int, first: int = 1, who: int = 7, slot: int = 0, **fields: int) -> Command:
    op = Put(slot, b"k", b"%d" % seq, client=client(who), seq=seq, first=first)
    return replace(op, **fields)


def one(store: Store, op: Command, now: int = 0) -> Result:
    (result,) = store.apply(now, [op])
    return result


def copy(store: Store) -> Store:
    other = Store()
    restore = other.begin_restore()
    for chunk in store.snapshot().chunks():
        restore.feed(chunk)
    restore.finish()
    return other


def test_a_retry_gets_the_recorded_result() -> None:
    store = make()
    assert one(store, put(1)) == Result(Code.OK, 1)
    assert one(store, put(2)) == Result(Code.OK, 2)
    assert one(store, put(1)) == Result(Code.OK, 1)
    assert store.read(0, b"k") == Result(Code.OK, 2, b"2")


def test_a_failed_condition_is_recorded_too() -> None:
    store = make()
    assert one(store, put(1, expect=5)) == Result(Code.CONDITION_FAILED, 0)
    one(store, put(2))
    assert one(store, put(3, expect=9)) == Result(Code.CONDITION_FAILED, 1)
    assert one(store, put(1, expect=5)) == Result(Code.CONDITION_FAILED, 0)
    assert one(store, put(3, expect=9)) == Result(Code.CONDITION_FAILED, 1)


def test_duplicates_within_one_entry() -> None:
    store = make()
    increments = [Cas(0, b"n", b"1", client=client(1), seq=1, first=1)] * 3
    assert store.apply(1, increments) == [Result(Code.OK, 1)] * 3


def test_a_delete_is_remembered_with_the_version_it_removed() -> None:
    store = make()
    one(store, put(1))
    gone = Delete(0, b"k", client=client(7), seq=2, first=1)
    assert one(store, gone) == Result(Code.OK, 1)
    one(store, put(3))
    assert one(store, gone) == Result(Code.OK, 1)
    assert store.read(0, b"k").value == b"3"


def test_below_the_first_incomplete_nothing_executes() -> None:
    store = make()
    one(store, put(1))
    one(store, put(5, first=5))
    assert one(store, put(1)).code == Code.SESSION_EXPIRED
    assert one(store, put(3)).code == Code.SESSION_EXPIRED
    assert one(store, put(5)) == Result(Code.OK, 2)
    assert store.read(0, b"k").value == b"5"


def test_writes_out_of_order_execute_once_each() -> None:
    store = make()
    for seq in (3, 1, 4, 2):
        assert one(store, put(seq)).code == Code.OK
    before = store.stats()
    versions = [one(store, put(seq)).version for seq in (1, 2, 3, 4)]
    assert versions == [2, 4, 1, 3]
    assert store.stats() == before
    one(store, put(9, first=4))
    assert one(store, put(4)).version == 3
    assert one(store, put(9)).version == 5


def test_sessions_are_per_slot() -> None:
    store = make()
    one(store, put(1, slot=0))
    one(store, put(2, first=2, slot=1))
    assert one(store, put(1, slot=0)) == Result(Code.OK, 1)
    assert store.stats().sessions == 2


def test_a_write_without_a_client_is_not_remembered() -> None:
    store = make()
    plain = Put(0, b"k", b"v")
    assert [one(store, plain).version for _ in range(3)] == [1, 2, 3]
    assert store.stats().sessions == 0


def test_moved_is_not_recorded() -> None:
    store = make()
    assert one(store, put(1, slot=9)).code == Code.MOVED
    assert store.stats().sessions == 0


def test_an_idle_session_goes_and_its_retries_are_refused() -> None:
    store = make()
    one(store, put(1), now=1000)
    one(store, TICK, now=1000 + IDLE - 1)
    assert one(store, put(1)) == Result(Code.OK, 1), "used just now, so it lives on"
    one(store, TICK, now=1000 + IDLE + 100)
    assert store.stats().sessions == 1
    one(store, TICK, now=1000 + 2 * IDLE)
    assert store.stats().sessions == 0
    assert one(store, put(1)).code == Code.SESSION_EXPIRED
    assert one(store, put(2, first=2)).code == Code.SESSION_EXPIRED, "the same client may not come back either"
    assert one(store, put(1, who=6)).code == Code.SESSION_EXPIRED, "nor an older one, which may have been here"
    assert one(store, put(1, who=8)).code == Code.OK
    assert one(store, put(1, slot=1)).code == Code.OK, "another slot has its own floor"


def test_one_entry_closes_a_bounded_number_and_restored_replicas_agree() -> None:
    store = make()
    count = limits.MAX_EXPIRED_PER_ENTRY + 500
    store.apply(1000, [put(1, who=i) for i in range(1, count + 1)])
    store.apply(2000, [put(2, who=i) for i in range(1, count + 1, 3)])
    twin = copy(store)
    left = []
    for now in (1000 + IDLE, 1001 + IDLE, 1002 + IDLE, 2000 + IDLE, 2001 + IDLE):
        store.apply(now, [TICK])
        twin.apply(now, [TICK])
        left.append(store.stats().sessions)
        assert store.digest() == twin.digest()
        twin = copy(store)
    assert left[0] >= 500
    assert left[2] == count // 3
    assert left[-1] == 0


def test_too_many_sessions_evict_the_least_recently_used() -> None:
    store = make()
    most = limits.MAX_SESSIONS_PER_SLOT
    for who in range(1, most + 1):
        store.apply(who, [put(1, who=who)])
    store.apply(most + 1, [put(2, who=1)])
    assert store.stats().sessions == most
    twin = copy(store)
    for each in (store, twin):
        assert one(each, put(1, who=most + 1), now=most + 2).code == Code.OK
        assert each.stats().sessions <= most
        assert one(each, put(1, who=1)).version == 1, "used most recently"
        assert one(each, put(1, who=2)).code == Code.SESSION_EXPIRED
        assert one(each, put(1, who=most)).version == most
    assert store.digest() == twin.digest()


def test_a_client_that_never_raises_first_loses_the_oldest_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RESULTS_PER_SESSION", 10)
    store = make()
    for seq in range(1, 31):
        assert one(store, put(seq)).code == Code.OK
    codes = [one(store, put(seq)).code for seq in range(1, 31)]
    assert codes == [Code.SESSION_EXPIRED] * 20 + [Code.OK] * 10
    assert store.read(0, b"k").version == 30


def test_results_below_first_are_let_go_of() -> None:
    store = make()
    for seq in range(1, 5000):
        one(store, put(seq, first=max(1, seq - 50)))
    session = store._slots[0].sessions[client(7)]
    assert len(list(session.results())) == 51
