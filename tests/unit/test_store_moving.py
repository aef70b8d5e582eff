"""Guarantees: each step of a slot move does what it says once, and refuses, without a change, what it must not do."""

from __future__ import annotations

import msgpack
import pytest

from raftkv import limits
from raftkv.errors import Code
from raftkv.store import Kind, Op, Result, SlotState, Store
from tests.store_helpers import (
    DONE,
    SOURCE_TIME,
    TARGET_TIME,
    begin,
    copy,
    final,
    make,
    no_change,
    one,
    page,
    pair,
    refused,
    restored,
    roles,
    stage,
    state,
    step,
    summary_of,
)

IDLE = limits.SESSION_IDLE * 1000
TICK = Op(Kind.TICK, 0, b"")


# -- the whole way


def test_a_move_step_by_step() -> None:
    source, target = pair()
    before = [source.scan(slot, b"", 0) for slot in (0, 1)]
    assert (roles(source), roles(target)) == (("none", "none"), ("none", "none"))
    begin(source, target)
    assert (roles(source), roles(target)) == (("tracked", "none"), ("none", "importing"))
    assert target.read(0, b"key0").code == Code.MOVED
    assert one(target, Op(Kind.PUT, 0, b"key0", b"")).code == Code.MOVED
    assert source.scan(0, b"", 0) == before[0]
    assert copy(source, target) > 5
    assert one(source, Op(Kind.PUT, 1, b"late", b"x")).code == Code.OK
    assert one(source, step(Kind.FREEZE, 7)) == DONE
    assert roles(source) == ("frozen", "none")
    assert source.read(0, b"key0").code == Code.SLOT_MOVING
    assert one(source, Op(Kind.PUT, 0, b"key0", b"")).code == Code.SLOT_MOVING
    assert source.read(2, b"key2").code == Code.OK
    copy(source, target)
    assert one(target, final(source)) == DONE
    assert roles(target) == ("none", "staged")
    assert target.read(0, b"key0").code == Code.MOVED
    assert one(target, step(Kind.ACTIVATE, 7)) == DONE
    assert roles(target) == ("none", "active")
    assert one(source, step(Kind.RELEASE, 7)) == DONE
    assert roles(source) == ("released", "none")
    assert target.scan(0, b"", 0) == before[0], "also the times that are left"
    assert target.read(1, b"late") == Result(Code.OK, 21, b"x")
    assert source.read(0, b"key0").code == Code.MOVED
    assert (source.owned_slots(), target.owned_slots()) == ([2], [0, 1, 9])
    assert target.stats() == (41, sum(len(b"key%d" % i) + i for i in range(60) if i % 3 < 2) + 5, 8, 3)
    assert source.stats().slots == 1


def test_versions_and_retries_go_on_at_the_target() -> None:
    source, target = pair()
    source.apply(SOURCE_TIME + 60, [Op(Kind.PUT, 0, b"n", b"1", client=b"z" * 16, seq=5, first=4)])
    stage(source, target)
    one(target, step(Kind.ACTIVATE, 7))
    assert one(target, Op(Kind.PUT, 0, b"n", b"1", client=b"z" * 16, seq=5, first=4)) == Result(Code.OK, 21)
    assert one(target, Op(Kind.PUT, 0, b"n", b"2", client=b"z" * 16, seq=3)).code == Code.SESSION_EXPIRED
    assert one(target, Op(Kind.PUT, 0, b"n", b"2", client=b"z" * 16, seq=6)) == Result(Code.OK, 22)


def test_floors_of_sessions_move() -> None:
    source, target = pair()
    source.apply(SOURCE_TIME + IDLE + 100, [])
    source.apply(SOURCE_TIME + IDLE + 200, [])
    assert source.stats().sessions == 0
    stage(source, target)
    one(target, step(Kind.ACTIVATE, 7))
    late = Op(Kind.PUT, 0, b"n", b"1", client=(4).to_bytes(16, "big"), seq=99)
    assert one(target, late).code == Code.SESSION_EXPIRED
    assert one(target, late._replace(client=(5).to_bytes(16, "big"))).code == Code.OK


def test_times_are_converted_and_stand_still_while_frozen() -> None:
    source, target = make(0), make(9, now=TARGET_TIME)
    source.apply(2_000, [Op(Kind.PUT, 0, b"k", b"v", ttl=100), Op(Kind.PUT, 0, b"gone", b"v", ttl=30)])
    source.apply(2_010, [Op(Kind.PUT, 0, b"s", b"v", client=b"c" * 16, seq=1)])
    begin(source, target, (0,))
    copy(source, target)
    source.apply(2_040, [step(Kind.FREEZE, 7)])
    source.apply(2_500, [TICK])
    copy(source, target)
    target.apply(TARGET_TIME + 5_000, [final(source)])
    assert state(target)["records"] == 2, "what had expired by the freeze is not staged"
    target.apply(TARGET_TIME + 7_000, [step(Kind.ACTIVATE, 7)])
    assert target.read(0, b"k").ttl == 60
    assert target.next_expiry() == TARGET_TIME + 7_060
    target.apply(TARGET_TIME + 7_059, [TICK])
    assert target.read(0, b"k").ttl == 1
    target.apply(TARGET_TIME + 7_060, [TICK])
    assert target.read(0, b"k") == DONE
    assert target.stats().records == 1
    # The session was used 30 ms before the freeze.
    target.apply(TARGET_TIME + 7_000 - 30 + IDLE - 1, [TICK])
    assert target.stats().sessions == 1
    target.apply(TARGET_TIME + 7_000 - 30 + IDLE, [TICK])
    assert target.stats().sessions == 0


def test_a_younger_group_takes_sessions_from_before_its_time() -> None:
    source, target = make(0, now=9_000_000), make(9, now=10)
    source.apply(9_000_000, [Op(Kind.PUT, 0, b"k", b"v", client=b"c" * 16, seq=1)])
    source.apply(9_000_500, [])
    stage(source, target, (0,))
    target.apply(20, [step(Kind.ACTIVATE, 7)])
    (session,) = target._slots[0].sessions.values()
    assert (session.last, session.queued) == (-480, -480)
    assert restored(target.snapshot().chunks()).digest() == target.digest()
    target.apply(IDLE - 480, [TICK])
    assert target.stats().sessions == 0


def test_a_slot_moves_back_and_old_items_of_the_queues_do_no_harm() -> None:
    source, target = make(0), make(9, now=SOURCE_TIME)
    source.apply(2_000, [Op(Kind.PUT, 0, b"k", b"v", ttl=100, client=b"c" * 16, seq=1)])
    stage(source, target, (0,))
    one(target, step(Kind.ACTIVATE, 7))
    one(source, step(Kind.RELEASE, 7))
    stage(target, source, (0,), move=8)
    assert source.slot_state(0) is SlotState.IMPORTING
    # Now the record would have expired, had it stayed.
    source.apply(50_000, [TICK])
    assert state(source, 8)["records"] == 1
    one(source, step(Kind.ACTIVATE, 8))
    assert source.read(0, b"k").ttl == 100
    assert source.next_expiry() == 50_100
    source.apply(50_100, [TICK])
    assert source.stats().records == 0
    assert source._expiry.live == 0


def test_several_moves_at_once() -> None:
    source, target = pair()
    begin(source, target, (0,), move=7)
    begin(source, target, (1,), move=8)
    begin(target, source, (9,), move=9)
    copy(source, target, move=8)
    one(source, step(Kind.FREEZE, 8))
    assert [source.slot_state(slot) for slot in (0, 1)] == [SlotState.OWNED, SlotState.FROZEN]
    assert (roles(source, 7), roles(source, 8), roles(source, 9)) == (
        ("tracked", "none"),
        ("frozen", "none"),
        ("none", "importing"),
    )
    copy(source, target, move=8)
    one(target, final(source, 8))
    one(target, step(Kind.ACTIVATE, 8))
    one(source, step(Kind.RELEASE, 8))
    assert target.owned_slots() == [1, 9]
    assert source.owned_slots() == [0, 2]


# -- steps of the target


def test_begin_is_refused_where_it_must_be() -> None:
    source, target = pair()
    assert "first slots" in refused(Store(), step(Kind.IMPORT_BEGIN, 7, [0]))
    assert refused(source, step(Kind.IMPORT_BEGIN, 7, [5, 0])) == "the group has slot 0"
    one(source, step(Kind.TRACK, 7, [0]))
    assert refused(source, step(Kind.IMPORT_BEGIN, 7, [5])) == "the group is the source of the move"
    one(source, step(Kind.FREEZE, 7))
    assert refused(source, step(Kind.IMPORT_BEGIN, 8, [0])) == "the group has slot 0"
    one(target, step(Kind.IMPORT_BEGIN, 7, [0, 1]))
    no_change(target, step(Kind.IMPORT_BEGIN, 7, [1, 0]))
    assert refused(target, step(Kind.IMPORT_BEGIN, 7, [0])) == "the move has other slots"
    assert refused(target, step(Kind.IMPORT_BEGIN, 6, [1, 2])) == "slot 1 takes part in move 7"
    one(target, step(Kind.IMPORT_DROP, 7, [0, 1]))
    assert refused(target, step(Kind.IMPORT_BEGIN, 7, [0, 1])) == "the move is over for slot 0"
    assert refused(target, step(Kind.IMPORT_BEGIN, 6, [0, 1])) == "the move is over for slot 0"
    assert one(target, step(Kind.IMPORT_BEGIN, 8, [0, 1])) == DONE


def test_a_later_move_replaces_an_abandoned_import() -> None:
    source, target = pair()
    begin(source, target, (0, 1))
    copy(source, target)
    assert one(target, step(Kind.IMPORT_BEGIN, 8, [1, 2])) == DONE
    assert roles(target, 7) == ("none", "cancelled")
    assert [target.slot_state(slot) for slot in (0, 1, 2)] == [None, SlotState.IMPORTING, SlotState.IMPORTING]
    assert state(target, 8)["records"] == 0
    assert "over for slot 0" in refused(target, step(Kind.IMPORT_BEGIN, 7, [0, 1]))
    assert "not the target" in refused(target, step(Kind.IMPORT_CHUNK, 7, 1, b"", b""))


def test_chunks_apply_once_and_in_order() -> None:
    source, target = pair()
    begin(source, target)
    first, _ = page(source, target)
    assert one(target, first) == Result(Code.OK, 1)
    second, _ = page(source, target)
    assert one(target, second) == Result(Code.OK, 2)
    third, _ = page(source, target)
    before = target.digest()
    for late in (first, second, step(Kind.IMPORT_CHUNK, 7, 4, b"", b"")):
        result = one(target, late)
        assert result == Result(Code.CONDITION_FAILED, 2, detail="not the next chunk")
    # One that was read from another cursor, although its number is the next one.
    other, _ = page(source, make_like(target, cursor=b""))
    skipping = step(Kind.IMPORT_CHUNK, 7, 3, *msgpack.unpackb(other.value)[2:])
    assert one(target, skipping).code == Code.CONDITION_FAILED
    assert target.digest() == before
    assert one(target, third) == Result(Code.OK, 3)
    assert state(target)["seq"] == 3


def make_like(target: Store, cursor: bytes) -> Store:
    other = restored(target.snapshot().chunks())
    other._moves.imports[7].cursor = cursor
    return other


def test_chunks_are_refused_once_staged() -> None:
    source, target = pair()
    begin(source, target)
    copy(source, target)
    one(source, step(Kind.FREEZE, 7))
    copy(source, target)
    extra, _ = page(source, target)
    one(target, final(source))
    assert refused(target, extra) == "not the next chunk"


def test_a_differing_summary_empties_the_staging() -> None:
    source, target = pair()
    begin(source, target)
    copy(source, target)
    one(source, step(Kind.FREEZE, 7))
    assert one(target, final(source)).detail == "digest differs", "sessions are missing"
    assert state(target) == {
        "source": "none",
        "target": "importing",
        "seq": 0,
        "cursor": b"",
        "bytes": 0,
        "records": 0,
    }
    copy(source, target)
    for change in (0, 2, 3):
        summary = msgpack.unpackb(summary_of(source, 7).value)
        summary[change] = b"0" * 16 if change == 3 else summary[change] + 10**6
        twin = restored(target.snapshot().chunks())
        assert one(twin, step(Kind.IMPORT_FINAL, 7, msgpack.packb(summary))).detail == "digest differs"
    assert one(target, final(source)) == DONE
    no_change(target, final(source))
    one(target, step(Kind.ACTIVATE, 7))
    assert "not the target" in refused(target, final(source))


def test_activate_only_what_is_staged_and_once() -> None:
    source, target = pair()
    assert "not the target" in refused(target, step(Kind.ACTIVATE, 7))
    begin(source, target)
    assert refused(target, step(Kind.ACTIVATE, 7)) == "not staged"
    copy(source, target)
    one(source, step(Kind.FREEZE, 7))
    copy(source, target)
    one(target, final(source))
    assert one(target, step(Kind.ACTIVATE, 7)) == DONE
    one(target, Op(Kind.PUT, 0, b"new", b"x"))
    no_change(target, step(Kind.ACTIVATE, 7))
    for late in (
        step(Kind.IMPORT_BEGIN, 7, [0, 1]),
        step(Kind.IMPORT_DROP, 7, [0, 1]),
        step(Kind.UNTRACK, 7, [0, 1]),
        step(Kind.TRACK, 7, [0, 1]),
        step(Kind.TRACK, 6, [0, 1]),
        step(Kind.FREEZE, 7),
        step(Kind.RELEASE, 7),
    ):
        refused(target, late)
    assert target.read(0, b"new").value == b"x"


def test_an_import_that_is_dropped_never_comes_back() -> None:
    source, target = pair()
    stage(source, target)
    assert one(target, step(Kind.IMPORT_DROP, 7, [0, 1])) == DONE
    assert roles(target) == ("none", "cancelled")
    assert target.stats().slots == 1
    no_change(target, step(Kind.IMPORT_DROP, 7, [0, 1]))
    for late in (step(Kind.IMPORT_BEGIN, 7, [0, 1]), step(Kind.ACTIVATE, 7), final(source)):
        refused(target, late)
    one(target, step(Kind.IMPORT_BEGIN, 8, [0]))
    no_change(target, step(Kind.IMPORT_DROP, 7, [0, 1]))
    # One that is dropped before it began.
    assert one(target, step(Kind.IMPORT_DROP, 9, [5])) == DONE
    assert "over for slot 5" in refused(target, step(Kind.IMPORT_BEGIN, 9, [5]))
    # One that is dropped while an older one still stands is the end of both.
    assert one(target, step(Kind.IMPORT_DROP, 9, [0])) == DONE
    assert (roles(target, 8), roles(target, 9)) == (("none", "none"), ("none", "cancelled"))
    assert target.slot_state(0) is None


# -- steps of the source


def test_track_is_refused_where_it_must_be() -> None:
    source, target = pair()
    assert "does not serve slot 5" in refused(source, step(Kind.TRACK, 7, [0, 5]))
    one(source, step(Kind.TRACK, 7, [0, 1]))
    no_change(source, step(Kind.TRACK, 7, [1, 0]))
    assert refused(source, step(Kind.TRACK, 7, [0])) == "the move has other slots"
    assert refused(source, step(Kind.TRACK, 8, [0])) == "slot 0 takes part in move 7"
    one(source, step(Kind.FREEZE, 7))
    no_change(source, step(Kind.TRACK, 7, [0, 1]))
    assert "does not serve" in refused(source, step(Kind.TRACK, 8, [0]))
    one(target, step(Kind.IMPORT_BEGIN, 7, [0]))
    assert refused(target, step(Kind.TRACK, 7, [9])) == "the group is the target of the move"
    assert "does not serve" in refused(target, step(Kind.TRACK, 8, [0]))


def test_freeze_and_release_only_what_they_may() -> None:
    source, _ = pair()
    assert "not the source" in refused(source, step(Kind.FREEZE, 7))
    assert "not the source" in refused(source, step(Kind.RELEASE, 7))
    one(source, step(Kind.TRACK, 7, [0, 1]))
    assert refused(source, step(Kind.RELEASE, 7)) == "the slots are not frozen"
    source.apply(5_000, [step(Kind.FREEZE, 7)])
    source.apply(6_000, [step(Kind.FREEZE, 7)])
    assert msgpack.unpackb(summary_of(source, 7).value)[0] == 5_000
    assert "not the source" in refused(source, step(Kind.RELEASE, 8))
    assert one(source, step(Kind.RELEASE, 7)) == DONE
    no_change(source, step(Kind.RELEASE, 7))
    for late in (step(Kind.TRACK, 7, [0, 1]), step(Kind.FREEZE, 7), step(Kind.UNTRACK, 7, [0, 1])):
        refused(source, late)
    refused(source, step(Kind.IMPORT_DROP, 7, [0, 1]))


def test_a_cancelled_move_leaves_the_source_as_it_was() -> None:
    source, _ = pair()
    one(source, step(Kind.TRACK, 7, [0, 1]))
    one(source, step(Kind.FREEZE, 7))
    assert one(source, step(Kind.UNTRACK, 7, [0, 1])) == DONE
    assert roles(source) == ("cancelled", "none")
    assert one(source, Op(Kind.PUT, 0, b"k", b"v")).code == Code.OK
    no_change(source, step(Kind.UNTRACK, 7, [0, 1]))
    for late in (step(Kind.TRACK, 7, [0, 1]), step(Kind.FREEZE, 7), step(Kind.RELEASE, 7)):
        refused(source, late)
    assert one(source, step(Kind.TRACK, 8, [1])) == DONE
    no_change(source, step(Kind.UNTRACK, 7, [0, 1]))
    assert refused(source, step(Kind.UNTRACK, 9, [0, 1])) == "slot 1 takes part in move 8"
    refused(source, step(Kind.IMPORT_DROP, 8, [1]))
    refused(source, step(Kind.IMPORT_DROP, 9, [1]))
    # A move that is cancelled before it was tracked.
    assert one(source, step(Kind.UNTRACK, 9, [0])) == DONE
    assert "over for slot 0" in refused(source, step(Kind.TRACK, 9, [0]))


def test_what_came_due_while_frozen_goes_after_the_cancellation() -> None:
    source = make(0, 1)
    source.apply(2_000, [Op(Kind.PUT, slot, b"k", b"v", ttl=100, client=b"c" * 16, seq=1) for slot in (0, 1)])
    source.apply(2_000, [Op(Kind.PUT, 0, b"later", b"v", ttl=2 * IDLE)])
    source.apply(2_050, [step(Kind.TRACK, 7, [0]), step(Kind.FREEZE, 7)])
    content = source._slots[0].records, source._slots[0].sessions
    source.apply(2_000 + IDLE, [TICK])
    assert [len(part) for part in content] == [2, 1], "content stays as it is while frozen"
    assert source.stats() == (2, 8, 1, 2)
    assert source.next_expiry() == 2_000 + 2 * IDLE, "no reason to tick for what is frozen"
    twin = restored(source.snapshot().chunks())
    for store in (source, twin):
        assert one(store, step(Kind.UNTRACK, 7, [0])) == DONE
        assert store.stats() == (1, 6, 0, 2)
        assert one(store, Op(Kind.PUT, 0, b"k", b"v", client=b"c" * 16, seq=1)).code == Code.SESSION_EXPIRED
        assert store.next_expiry() == 2_000 + 2 * IDLE
        assert store._expiry.live == 1
    assert source.digest() == twin.digest()


def test_what_is_held_back_does_not_count_as_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_EXPIRED_PER_ENTRY", 1)
    store = make(0, 1)
    for at, slot in ((2_000, 0), (2_001, 1)):
        store.apply(at, [Op(Kind.PUT, slot, b"k", b"v", ttl=100, client=b"c" * 16, seq=1)])
    store.apply(2_050, [step(Kind.TRACK, 7, [0]), step(Kind.FREEZE, 7)])
    for wait in (100, IDLE):
        store.apply(2_000 + wait, [TICK])
        # The queues of one that is restored now have again what the other has put aside.
        twin = restored(store.snapshot().chunks())
        for each in (store, twin):
            each.apply(2_001 + wait, [TICK])
        assert store.digest() == twin.digest()
    assert store.stats() == (1, 2, 1, 2)


def test_old_items_of_the_queues_do_not_reach_into_an_import() -> None:
    """All times equal, so that items of the time before the slot left look like those of what comes back."""
    source, target = make(0, 1), make(9, now=SOURCE_TIME)
    one(source, Op(Kind.PUT, 1, b"first", b"v", ttl=50))
    both = [Op(Kind.PUT, 0, b"k", b"v", ttl=100, client=b"c" * 16, seq=1), Op(Kind.PUT, 0, b"l", b"v", ttl=2 * IDLE)]
    source.apply(SOURCE_TIME, both)
    stage(source, target, (0,))
    one(target, step(Kind.ACTIVATE, 7))
    one(source, step(Kind.RELEASE, 7))
    stage(target, source, (0,), move=8)
    source.apply(SOURCE_TIME + 2 * IDLE, [TICK])
    assert state(source, 8)["records"] == 2
    assert state(source, 8)["bytes"] == 4
    assert source.stats().sessions == 1
    source.apply(SOURCE_TIME + 2 * IDLE, [step(Kind.ACTIVATE, 8)])
    assert source.read(0, b"k").ttl == 100
    assert one(source, both[0]) == Result(Code.OK, 1)


def test_memory_of_released_slots_is_freed_little_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_FREED_PER_ENTRY", 7)
    source, target = pair()
    stage(source, target)
    snapshot = source.snapshot()
    digest = source.digest()
    one(source, step(Kind.RELEASE, 7))
    one(source, TICK)
    assert len(source._moves.trash) == 2, "the snapshot reads them"
    assert restored(snapshot.chunks()).digest() == digest
    left = []
    while source._moves.trash:
        one(source, TICK)
        left.append(sum(len(slot.records) + len(slot.sessions) for slot in source._moves.trash))
    assert left == [41, 34, 27, 20, 13, 6, 0][: len(left)] or left == sorted(left, reverse=True)
    assert all(a - b <= 7 for a, b in zip([48, *left], left, strict=False))
    assert source.stats().records == 20


def test_operations_are_counted_by_slot() -> None:
    store = make(0, 3)
    one(store, Op(Kind.PUT, 0, b"k", b"1234"))
    store.read(0, b"k")
    store.read(0, b"none")
    store.scan(0, b"", 0)
    store.read(1, b"k")
    assert store.slot_stats() == [(0, 1, 5, 4), (3, 0, 0, 0)]
