"""Guarantee: results that are more than a version are answered again whole, and what a slot keeps of them is bounded:
by the same rule on all replicas, and after a snapshot or a move as before it."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from raftkv import limits
from raftkv.commands.base import Write
from raftkv.commands.moving import Activate, Freeze, Release, Untrack
from raftkv.commands.records import Put
from raftkv.commands.results import Result, TransactionAnswer
from raftkv.commands.transactions import GetStep, PutStep, Transact
from raftkv.commands.updates import Append, GetAndDelete, Increment
from raftkv.errors import Code
from raftkv.store.records import Store
from raftkv.store.sessions import Kept
from tests.store_helpers import (
    DONE,
    GROUP,
    SOURCE_TIME,
    TARGET_TIME,
    again,
    begin,
    copy,
    final,
    make,
    one,
    restored,
    stage,
)

RETRIED = limits.MAX_TIMEOUT * 1000


def client(number: int) -> bytes:
    return number.to_bytes(16, "big")


def pop(store: Store, number: int, seq: int, size: int, now: int = 0, first: int = 1) -> Result:
    one(store, Put(0, b"k", b"x" * size), now)
    return one(store, GetAndDelete(0, b"k", client=client(number), seq=seq, first=first), now)


def any_write(rng: Random, **name: Any) -> Write:
    match rng.randrange(4):
        case 0:
            return Append(0, b"k", b"x" * rng.randint(0, 300), **name)
        case 1:
            return GetAndDelete(0, b"k", **name)
        case 2:
            return Put(0, b"k", b"y", **name)
    return Transact(0, (), (GetStep(b"k"),), **name)


def counted(store: Store, slot: int = 0) -> tuple[int, int]:
    """What the slot says that it keeps; it is what stands in its sessions, and what the queue waits for."""
    home = store.slot(slot)
    assert home is not None
    found = [kept for session in home.sessions.values() for _, kept in session.kept()]
    said = (0, 0) if home.keeps is None else (home.keeps.count, home.keeps.bytes)
    assert said == (len(found), sum(kept.size for kept in found))
    return said


def test_a_retry_meets_the_whole_result() -> None:
    store = make(0)
    ops: list[Write] = [
        Increment(0, b"n", 5, client=client(1), seq=1, first=1),
        Append(0, b"n", b"x", client=client(1), seq=2, first=1),
        Increment(0, b"n", 1, client=client(1), seq=3, first=1),
        Transact(0, (), (PutStep(b"a", b"1"), GetStep(b"n")), client=client(1), seq=4, first=1),
        GetAndDelete(0, b"n", client=client(1), seq=5, first=1),
    ]
    first = [one(store, op) for op in ops]
    assert [result.code for result in first] == [0, 0, Code.NOT_A_NUMBER, 0, 0]
    assert first[3].answer == TransactionAnswer(True, ((3, None, -1), (2, b"5x", -1)), 3)
    before = store.digest()
    results = dict(zip(ops, first, strict=True))
    for op in [*again(ops), *reversed(ops)]:
        assert one(store, op) == results[op]  # type: ignore[index]
    assert store.digest() == before
    assert counted(restored(store.snapshot().chunks())) == counted(store) == (5, counted(store)[1])


def test_a_failure_stays_a_failure_when_what_made_it_fail_has_gone() -> None:
    """Else an attempt that is late could take effect after its caller was told that none did."""
    store = make(0)
    one(store, Put(0, b"n", b"text"))
    late = Increment(0, b"n", 1, client=client(1), seq=1, first=1)
    assert one(store, late).code == Code.NOT_A_NUMBER
    one(store, Put(0, b"n", b"1"))
    assert one(store, late).code == Code.NOT_A_NUMBER
    assert store.read(0, b"n").value == b"1"


def test_what_its_client_no_longer_waits_for_goes() -> None:
    store = make(0)
    for seq in range(1, 200):
        assert pop(store, 1, seq, 1000, first=max(1, seq - 3)).value == b"x" * 1000
        assert counted(store)[0] <= 5
    one(store, Put(0, b"k", b"", client=client(1), seq=300, first=300))
    assert counted(store) == (0, 0)
    assert store._ageing.kept.live == 0


def test_beyond_its_bound_a_slot_keeps_the_latest() -> None:
    store, size = make(0), 40_000
    for number in range(1, 101):
        pop(store, number, 1, size, now=number)
        assert counted(store)[1] <= limits.MAX_KEPT_BYTES
    kept = counted(store)[0]
    assert kept >= 13
    for number in range(1, 101):
        again_ = one(store, GetAndDelete(0, b"k", client=client(number), seq=1, first=1), 100)
        if number > 100 - kept:
            assert again_.value == b"x" * size, number
        else:
            assert again_.code == Code.SESSION_EXPIRED, "never a second execution"


def test_one_result_of_the_largest_size_is_kept() -> None:
    store = make(0)
    for number in range(1, 4):
        assert pop(store, number, 1, limits.MAX_VALUE_BYTES, now=number).value is not None
        found = one(store, GetAndDelete(0, b"k", client=client(number), seq=1, first=1), number)
        assert len(found.value or b"") == limits.MAX_VALUE_BYTES
    assert counted(store)[0] == 1


def test_they_go_when_no_retry_can_come_any_more() -> None:
    store = make(0, now=0)
    pop(store, 1, 1, 10, now=1000)
    one(store, Put(0, b"p", b"", client=client(1), seq=2, first=1), 1000)
    store.apply(1000 + RETRIED - 1, [])
    assert counted(store)[0] == 1
    twin = restored(store.snapshot().chunks())
    for each in (store, twin):
        each.apply(1000 + RETRIED, [])
        assert counted(each) == (0, 0)
        assert one(each, GetAndDelete(0, b"k", client=client(1), seq=1, first=1)).code == Code.SESSION_EXPIRED
        assert one(each, Put(0, b"p", b"", client=client(1), seq=2, first=1)).code == 0, "a version stays longer"
    assert store.digest() == twin.digest()


def test_no_entry_removes_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_EXPIRED_PER_ENTRY", 3)
    store = make(0, now=0)
    for number in range(1, 9):
        pop(store, number, 1, 10, now=number)
    twin = restored(store.snapshot().chunks())
    for left in (5, 2, 0):
        for each in (store, twin):
            each.apply(RETRIED + 100, [])
            assert counted(each)[0] == left
    assert store.digest() == twin.digest()


def test_whatever_happens_all_replicas_keep_the_same() -> None:
    """Random writes of a few clients under small bounds; one replica is restored from a snapshot now and then."""
    rng = Random(7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "MAX_KEPT_BYTES", 3000)
        patch.setattr(limits, "MAX_RESULTS_PER_SESSION", 6)
        store, twin, now = make(0, now=0), make(0, now=0), 0
        for step in range(1500):
            now += rng.choice([0, 1, 1, RETRIED // 10])
            seq = rng.randint(max(1, step // 10 - 6), step // 10 + 6)
            name = {"client": client(rng.randint(1, 4)), "seq": seq, "first": rng.randint(max(1, seq - 5), seq)}
            op = any_write(rng, **name)
            assert store.apply(now, [op]) == twin.apply(now, again([op]))
            if step % 50 == 0:
                twin = restored(twin.snapshot().chunks())
            if step % 10 == 0:
                assert store.digest() == twin.digest()
                assert counted(store) == counted(twin)
                assert store._ageing.kept.live == twin._ageing.kept.live == counted(store)[0]


def test_they_move_with_their_slot_and_age_by_the_targets_time() -> None:
    source, target = make(0, 1), make(9, now=TARGET_TIME)
    pop(source, 1, 1, 5000, now=SOURCE_TIME + 10)
    pop(source, 2, 1, 5000, now=SOURCE_TIME + 20)
    stage(source, target)
    assert one(target, Activate(GROUP, 7), TARGET_TIME + 1) == DONE
    assert one(source, Release(GROUP, 7)) == DONE
    assert source._ageing.kept.live == 0
    assert counted(target)[0] == target._ageing.kept.live == 2
    again_ = GetAndDelete(0, b"k", client=client(1), seq=1, first=1)
    assert one(target, again_).value == b"x" * 5000
    target.apply(TARGET_TIME + RETRIED - 20, [])
    assert counted(target)[0] == 2, "at the source they were 20 ms old at most"
    target.apply(TARGET_TIME + RETRIED + 1, [])
    assert counted(target) == (0, 0)


def test_a_frozen_slot_keeps_what_it_has() -> None:
    source, target = make(0, 1), make(9, now=TARGET_TIME)
    pop(source, 1, 1, 10, now=SOURCE_TIME)
    begin(source, target)
    assert one(source, Freeze(GROUP, 7)) == DONE
    source.apply(SOURCE_TIME + 2 * RETRIED, [])
    assert counted(source)[0] == 1
    twin = restored(source.snapshot().chunks())
    copy(source, target)
    assert one(target, final(source)) == DONE, "what was copied is what the source has"
    for each in (source, twin):
        assert one(each, Untrack(GROUP, 7, (0, 1))) == DONE
        each.apply(SOURCE_TIME + 2 * RETRIED + 1, [])
        assert counted(each) == (0, 0)


def test_what_is_no_result_is_refused() -> None:
    store = make(0)
    home = store.slot(0)
    assert home is not None
    pop(store, 1, 1, 10)
    home.sessions[client(1)].outcome = Kept(0, b"\xc1")
    with pytest.raises(Exception, match="not a snapshot of a store"):
        restored(store.snapshot().chunks())
