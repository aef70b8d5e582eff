"""Guarantee: a transaction is one operation on the keys of a slot, each change has its number, and moves miss none."""

from __future__ import annotations

import pytest

from raftkv import limits
from raftkv.commands.moving import Activate, Freeze, Release
from raftkv.commands.records import Delete, Put
from raftkv.commands.results import Result, TransactionAnswer
from raftkv.commands.transactions import Check, DeleteStep, GetStep, IncrementStep, PutStep, Step, Transact
from raftkv.commands.updates import Touch
from raftkv.errors import Code
from raftkv.store.records import Store
from tests.store_helpers import DONE, GROUP, SOURCE_TIME, TARGET_TIME, begin, copy, final, make, one, page

CLIENT = b"c" * 16


def transact(*steps: Step, checks: tuple[Check, ...] = (), otherwise: tuple[Step, ...] = (), seq: int = 0) -> Transact:
    named = {"client": CLIENT, "seq": seq, "first": 1} if seq else {}
    return Transact(0, checks, steps, otherwise, **named)  # type: ignore[arg-type]


def answer(result: Result) -> TransactionAnswer:
    assert isinstance(result.answer, TransactionAnswer), result
    return result.answer


def content(store: Store) -> tuple[dict[bytes, bytes], int]:
    slot = store.slot(0)
    assert slot is not None
    return dict(slot.records), slot.counter


def test_each_changed_key_takes_the_next_number() -> None:
    store = make(0)
    one(store, Put(0, b"a", b"1"))
    steps = (
        GetStep(b"a"),
        PutStep(b"b", b"2"),
        DeleteStep(b"a"),
        IncrementStep(b"n", 5),
        DeleteStep(b"none"),
        GetStep(b"b"),
    )
    done = answer(one(store, transact(*steps)))
    assert done == TransactionAnswer(
        True, ((1, b"1", -1), (2, None, -1), (1, None, -1), (4, b"5", -1), (0, None, -1), (2, b"2", -1)), 4
    )
    assert [store.read(0, key).version for key in (b"a", b"b", b"n")] == [0, 2, 4]
    assert answer(one(store, transact(GetStep(b"b")))).number == 4, "a read takes none"


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (Check(b"a", 1), True),
        (Check(b"a", 2), False),
        (Check(b"a", 0), False),
        (Check(b"none", 0), True),
        (Check(b"a", 0, b"1"), True),
        (Check(b"a", 0, b"2"), False),
        (Check(b"none", 0, b""), False),
        (Check(b"old", 0), True),
        (Check(b"old", 2), False),
        (Check(b"old", 0, b"x"), False),
    ],
)
def test_checks(check: Check, holds: bool) -> None:
    """What has expired is absent."""
    store = make(0)
    one(store, Put(0, b"a", b"1"), SOURCE_TIME)
    one(store, Put(0, b"old", b"x", ttl=5), SOURCE_TIME)
    both = (Check(b"a", 1), check)
    done = answer(one(store, transact(PutStep(b"b", b""), checks=both, otherwise=(GetStep(b"a"),)), SOURCE_TIME + 5))
    assert done.succeeded is holds
    assert done.results == (((3, None, -1),) if holds else ((1, b"1", -1),))
    assert bool(store.read(0, b"b").version) is holds


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (IncrementStep(b"text", 1), Code.NOT_A_NUMBER),
        (IncrementStep(b"most", 1), Code.OUT_OF_RANGE),
        (GetStep(b"large"), Code.TOO_LARGE),
    ],
)
def test_a_step_that_cannot_be_done_leaves_nothing_of_the_others(wrong: Step, code: Code) -> None:
    store = make(0)
    one(store, Put(0, b"text", b"01"))
    one(store, Put(0, b"most", str(2**63 - 1).encode()))
    one(store, Put(0, b"large", b"x" * (limits.MAX_TXN_RESULT_BYTES - 20)))
    one(store, Put(0, b"gone", b""))
    before = content(store)
    op = transact(PutStep(b"a", b"1"), DeleteStep(b"gone"), wrong, PutStep(b"z", b"1"), seq=1)
    refused = one(store, op)
    assert (refused.code, refused.answer) == (code, None)
    assert refused.detail
    assert content(store) == before
    for key in (b"text", b"most", b"large"):
        one(store, Delete(0, key))
    assert one(store, op) == refused, "also after what stood in its way has gone"


def test_an_answer_of_the_largest_size_is_kept_whole() -> None:
    store = make(0)
    one(store, Put(0, b"large", b"x" * (limits.MAX_TXN_RESULT_BYTES - 16)))
    op = transact(GetStep(b"large"), seq=1)
    first = one(store, op)
    assert len(answer(first).results[0][1] or b"") == limits.MAX_TXN_RESULT_BYTES - 16
    one(store, Delete(0, b"large"))
    assert one(store, op) == first


def test_increments_keep_the_time_to_live_and_puts_do_not() -> None:
    store = make(0)
    for key in (b"n", b"p"):
        one(store, Put(0, key, b"1", ttl=1000), SOURCE_TIME)
    answer(
        one(
            store,
            transact(IncrementStep(b"n", 1, 5), PutStep(b"p", b""), IncrementStep(b"m", 1, 50)),
            SOURCE_TIME + 100,
        )
    )
    assert [store.read(0, key).ttl for key in (b"n", b"p", b"m")] == [900, -1, 50]
    store.apply(SOURCE_TIME + 1000, [])
    assert [store.read(0, key).version for key in (b"n", b"p", b"m")] == [0, 4, 0]


def test_a_touch_takes_a_number_and_keeps_the_version() -> None:
    store = make(0)
    one(store, Put(0, b"a", b"1", ttl=10), SOURCE_TIME)
    assert one(store, Touch(0, b"a", 1000, 2)) == Result(Code.CONDITION_FAILED, 1)
    assert one(store, Touch(0, b"a", 1000, 1)) == Result(0, 1)
    assert content(store)[1] == 2
    store.apply(SOURCE_TIME + 999, [])
    assert store.read(0, b"a") == Result(0, 1, b"1", 1)
    assert one(store, Touch(0, b"a", 0)) == Result(0, 1)
    assert one(store, Touch(0, b"a", 0)) == Result(0, 1)
    assert content(store)[1] == 3, "what is permanent already is not changed"
    store.apply(SOURCE_TIME + 10**6, [])
    assert store.read(0, b"a") == Result(0, 1, b"1")
    assert one(store, Touch(0, b"none", 5)) == Result(0, 0)
    assert store._ageing.expiry.live == 0


def test_a_move_misses_neither_a_touch_nor_half_of_a_transaction() -> None:
    """Also if a page ends between two changes of one entry."""
    source, target = make(0, 1), make(9, now=TARGET_TIME)
    one(source, Put(0, b"t", b"x", ttl=10))
    begin(source, target)
    copy(source, target)
    one(source, Touch(0, b"t", 10**6))
    one(source, transact(*(PutStep(b"key%d" % number, b"v" * 100) for number in range(5)), seq=1))
    pages, done = 0, False
    while not done:
        chunk, done = page(source, target, 150)
        assert one(target, chunk).code == Code.OK
        pages += 1
    assert pages > 3
    assert one(source, Freeze(GROUP, 7)) == DONE
    refused = one(source, transact(GetStep(b"t"), seq=2))
    assert refused.code == Code.SLOT_MOVING
    copy(source, target)
    assert one(target, final(source)) == DONE
    assert one(target, Activate(GROUP, 7), TARGET_TIME) == DONE
    assert one(source, Release(GROUP, 7)) == DONE
    assert one(source, transact(GetStep(b"t"), seq=2)).code == Code.MOVED
    found = answer(one(target, transact(GetStep(b"t"), *(GetStep(b"key%d" % number) for number in range(5)), seq=2)))
    assert found.results[0][:2] == (1, b"x")
    assert found.results[0][2] > 10**5
    assert [version for version, _, _ in found.results[1:]] == [3, 4, 5, 6, 7]
    again = one(target, transact(*(PutStep(b"key%d" % number, b"v" * 100) for number in range(5)), seq=1))
    assert answer(again).number == found.number == 7, "its outcome moved along"


def test_bounds_of_what_other_nodes_send() -> None:
    assert transact(GetStep(b"a")).refusal() is None
    for wrong in (
        transact(PutStep(b"a", b""), DeleteStep(b"a")),
        transact(GetStep(b"x" * (limits.MAX_KEY_BYTES + 1))),
        transact(PutStep(b"a", b"x" * (limits.MAX_VALUE_BYTES + 1))),
        transact(*(PutStep(b"a%d" % number, b"x" * 10**6) for number in range(3))),
    ):
        assert wrong.refusal() is not None
    assert not transact(GetStep(b"a"), DeleteStep(b"b"), otherwise=(GetStep(b"a"),)).grows
    assert transact(GetStep(b"a"), otherwise=(IncrementStep(b"b", 1),)).grows
