"""Guarantees: each step of a slot move does what it says once, and refuses, without a change, what it must not do."""

from __future__ import annotations

import msgpack
import pytest
from msgspec.structs import replace

from raftkv import limits
from raftkv.commands.group import Tick
from raftkv.commands.moving import (
    Activate,
    Freeze,
    ImportBegin,
    ImportChunk,
    ImportDrop,
    ImportFinal,
    Release,
    Track,
    Untrack,
)
from raftkv.commands.records import Put
from raftkv.commands.results import MoveReport, Result
from raftkv.errors import Code
from raftkv.store.records import Store
from raftkv.store.slot import SlotState
from tests.store_helpers import (
    DONE,
    GROUP,
    SOURCE_TIME,
    TARGET_TIME,
    begin,
    content,
    copy,
    final,
    in_order,
    make,
    no_change,
    one,
    page,
    pair,
    refused,
    restored,
    roles,
    scan_of,
    stage,
    state,
    summary_bytes,
)

IDLE = limits.SESSION_IDLE * 1000
TICK = Tick()


# -- the whole way


def test_a_move_step_by_step() -> None:
    source, target = pair()
    before = [content(source, slot) for slot in (0, 1)]
    assert (roles(source), roles(target)) == (("none", "none"), ("none", "none"))
    begin(source, target)
    assert (roles(source), roles(target)) == (("tracked", "none"), ("none", "importing"))
    assert target.read(0, b"key0").code == Code.MOVED
    assert one(target, Put(0, b"key0", b"")).code == Code.MOVED
    assert content(source, 0) == before[0]
    assert copy(source, target) > 5
    assert one(source, Put(1, b"late", b"x")).code == Code.OK
    assert one(source, Freeze(GROUP, 7)) == DONE
    assert roles(source) == ("frozen", "none")
    assert source.read(0, b"key0").code == Code.SLOT_MOVING
    assert one(source, Put(0, b"key0", b"")).code == Code.SLOT_MOVING
    assert source.read(2, b"key2").code == Code.OK
    copy(source, target)
    assert one(target, final(source)) == DONE
    assert roles(target) == ("none", "staged")
    assert target.read(0, b"key0").code == Code.MOVED
    assert one(target, Activate(GROUP, 7)) == DONE
    assert roles(target) == ("none", "active")
    assert one(source, Release(GROUP, 7)) == DONE
    assert roles(source) == ("released", "none")
    assert content(target, 0) == before[0], "also the times that are left"
    assert target.read(1, b"late") == Result(Code.OK, 21, b"x")
    assert source.read(0, b"key0").code == Code.MOVED
    assert (source.owned_slots(), target.owned_slots()) == ([2], [0, 1, 9])
    assert target.stats() == (41, sum(len(b"key%d" % i) + i for i in range(60) if i % 3 < 2) + 5, 8, 3)
    assert source.stats().slots == 1


def test_versions_and_retries_go_on_at_the_target() -> None:
    source, target = pair()
    source.apply(SOURCE_TIME + 60, [Put(0, b"n", b"1", client=b"z" * 16, seq=5, first=4)])
    stage(source, target)
    one(target, Activate(GROUP, 7))
    assert one(target, Put(0, b"n", b"1", client=b"z" * 16, seq=5, first=4)) == Result(Code.OK, 21)
    assert one(target, Put(0, b"n", b"2", client=b"z" * 16, seq=3)).code == Code.SESSION_EXPIRED
    assert one(target, Put(0, b"n", b"2", client=b"z" * 16, seq=6)) == Result(Code.OK, 22)


def test_floors_of_sessions_move() -> None:
    source, target = pair()
    source.apply(SOURCE_TIME + IDLE + 100, [])
    source.apply(SOURCE_TIME + IDLE + 200, [])
    assert source.stats().sessions == 0
    stage(source, target)
    one(target, Activate(GROUP, 7))
    late = Put(0, b"n", b"1", client=(4).to_bytes(16, "big"), seq=99)
    assert one(target, late).code == Code.SESSION_EXPIRED
    assert one(target, replace(late, client=(5).to_bytes(16, "big"))).code == Code.OK


def test_times_are_converted_and_stand_still_while_frozen() -> None:
    source, target = make(0), make(9, now=TARGET_TIME)
    source.apply(2_000, [Put(0, b"k", b"v", ttl=100), Put(0, b"gone", b"v", ttl=30)])
    source.apply(2_010, [Put(0, b"s", b"v", client=b"c" * 16, seq=1)])
    begin(source, target, (0,))
    copy(source, target)
    source.apply(2_040, [Freeze(GROUP, 7)])
    source.apply(2_500, [TICK])
    copy(source, target)
    target.apply(TARGET_TIME + 5_000, [final(source)])
    assert state(target).records == 3, "what has expired is removed where it is served, under a number"
    target.apply(TARGET_TIME + 7_000, [Activate(GROUP, 7)])
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
    source.apply(9_000_000, [Put(0, b"k", b"v", client=b"c" * 16, seq=1)])
    source.apply(9_000_500, [])
    stage(source, target, (0,))
    target.apply(20, [Activate(GROUP, 7)])
    (session,) = target._slots[0].sessions.values()
    assert (session.last, session.queued) == (-480, -480)
    assert restored(target.snapshot().chunks()).digest() == target.digest()
    target.apply(IDLE - 480, [TICK])
    assert target.stats().sessions == 0


def test_a_slot_moves_back_and_old_items_of_the_queues_do_no_harm() -> None:
    source, target = make(0), make(9, now=SOURCE_TIME)
    source.apply(2_000, [Put(0, b"k", b"v", ttl=100, client=b"c" * 16, seq=1)])
    stage(source, target, (0,))
    one(target, Activate(GROUP, 7))
    one(source, Release(GROUP, 7))
    stage(target, source, (0,), move=8)
    assert source.slot_state(0) is SlotState.IMPORTING
    # Now the record would have expired, had it stayed.
    source.apply(50_000, [TICK])
    assert state(source, 8).records == 1
    one(source, Activate(GROUP, 8))
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
    one(source, Freeze(GROUP, 8))
    assert [source.slot_state(slot) for slot in (0, 1)] == [SlotState.OWNED, SlotState.FROZEN]
    assert (roles(source, 7), roles(source, 8), roles(source, 9)) == (
        ("tracked", "none"),
        ("frozen", "none"),
        ("none", "importing"),
    )
    copy(source, target, move=8)
    one(target, final(source, 8))
    one(target, Activate(GROUP, 8))
    one(source, Release(GROUP, 8))
    assert target.owned_slots() == [1, 9]
    assert source.owned_slots() == [0, 2]


# -- steps of the target


def test_begin_is_refused_where_it_must_be() -> None:
    source, target = pair()
    assert "not initialised" in refused(Store(), ImportBegin(GROUP, 7, (0,)))
    assert refused(source, ImportBegin(GROUP, 7, (5, 0))) == "the group has slot 0"
    one(source, Track(GROUP, 7, (0,)))
    assert refused(source, ImportBegin(GROUP, 7, (5,))) == "the group is the source of the move"
    one(source, Freeze(GROUP, 7))
    assert refused(source, ImportBegin(GROUP, 8, (0,))) == "the group has slot 0"
    one(target, ImportBegin(GROUP, 7, (0, 1)))
    no_change(target, ImportBegin(GROUP, 7, (1, 0)))
    assert refused(target, ImportBegin(GROUP, 7, (0,))) == "the move has other slots"
    assert refused(target, ImportBegin(GROUP, 6, (1, 2))) == "slot 1 takes part in move 7"
    one(target, ImportDrop(GROUP, 7, (0, 1)))
    assert refused(target, ImportBegin(GROUP, 7, (0, 1))) == "the move is over for slot 0"
    assert refused(target, ImportBegin(GROUP, 6, (0, 1))) == "the move is over for slot 0"
    assert one(target, ImportBegin(GROUP, 8, (0, 1))) == DONE


def test_a_later_move_replaces_an_abandoned_import() -> None:
    source, target = pair()
    begin(source, target, (0, 1))
    copy(source, target)
    assert one(target, ImportBegin(GROUP, 8, (1, 2))) == DONE
    assert roles(target, 7) == ("none", "cancelled")
    assert [target.slot_state(slot) for slot in (0, 1, 2)] == [None, SlotState.IMPORTING, SlotState.IMPORTING]
    assert state(target, 8).records == 0
    assert "over for slot 0" in refused(target, ImportBegin(GROUP, 7, (0, 1)))
    assert "not the target" in refused(target, ImportChunk(GROUP, 7, 1, b"", b""))


def test_chunks_apply_once_and_in_order() -> None:
    source, target = pair()
    begin(source, target)
    first, _ = page(source, target)
    assert one(target, first) == Result(Code.OK, number=1)
    second, _ = page(source, target)
    assert one(target, second) == Result(Code.OK, number=2)
    third, _ = page(source, target)
    before = target.digest()
    for late in (first, second, ImportChunk(GROUP, 7, 4, b"", b"")):
        result = one(target, late)
        assert result == Result(Code.CONDITION_FAILED, detail="not the next chunk", number=2)
    # One that was read from another cursor, although its number is the next one.
    other, _ = page(source, make_like(target, cursor=b""))
    skipping = ImportChunk(GROUP, 7, 3, other.cursor, other.chunk)
    assert one(target, skipping).code == Code.CONDITION_FAILED
    assert target.digest() == before
    assert one(target, third) == Result(Code.OK, number=3)
    assert state(target).seq == 3


def make_like(target: Store, cursor: bytes) -> Store:
    other = restored(target.snapshot().chunks())
    other.moves.imports[7].cursor = cursor
    return other


def test_chunks_are_refused_once_staged() -> None:
    source, target = pair()
    begin(source, target)
    copy(source, target)
    one(source, Freeze(GROUP, 7))
    copy(source, target)
    extra, _ = page(source, target)
    one(target, final(source))
    assert refused(target, extra) == "not the next chunk"


def test_a_differing_summary_empties_the_staging() -> None:
    source, target = pair()
    begin(source, target)
    copy(source, target)
    one(source, Freeze(GROUP, 7))
    assert one(target, final(source)).detail == "digest differs", "sessions are missing"
    assert state(target) == MoveReport("none", "importing", seq=0, cursor=b"", records=0, record_bytes=0)
    copy(source, target)
    for change in (0, 2, 3):
        summary = msgpack.unpackb(summary_bytes(source))
        summary[change] = b"0" * 16 if change == 3 else summary[change] + 10**6
        twin = restored(target.snapshot().chunks())
        assert one(twin, ImportFinal(GROUP, 7, msgpack.packb(summary))).detail == "digest differs"
    assert one(target, final(source)) == DONE
    no_change(target, final(source))
    one(target, Activate(GROUP, 7))
    assert "not the target" in refused(target, final(source))


def test_activate_only_what_is_staged_and_once() -> None:
    source, target = pair()
    assert "not the target" in refused(target, Activate(GROUP, 7))
    begin(source, target)
    assert refused(target, Activate(GROUP, 7)) == "not staged"
    copy(source, target)
    one(source, Freeze(GROUP, 7))
    copy(source, target)
    one(target, final(source))
    assert one(target, Activate(GROUP, 7)) == DONE
    one(target, Put(0, b"new", b"x"))
    no_change(target, Activate(GROUP, 7))
    for late in (
        ImportBegin(GROUP, 7, (0, 1)),
        ImportDrop(GROUP, 7, (0, 1)),
        Untrack(GROUP, 7, (0, 1)),
        Track(GROUP, 7, (0, 1)),
        Track(GROUP, 6, (0, 1)),
        Freeze(GROUP, 7),
        Release(GROUP, 7),
    ):
        refused(target, late)
    assert target.read(0, b"new").value == b"x"


def test_an_import_that_is_dropped_never_comes_back() -> None:
    source, target = pair()
    stage(source, target)
    assert one(target, ImportDrop(GROUP, 7, (0, 1))) == DONE
    assert roles(target) == ("none", "cancelled")
    assert target.stats().slots == 1
    no_change(target, ImportDrop(GROUP, 7, (0, 1)))
    for late in (ImportBegin(GROUP, 7, (0, 1)), Activate(GROUP, 7), final(source)):
        refused(target, late)
    one(target, ImportBegin(GROUP, 8, (0,)))
    no_change(target, ImportDrop(GROUP, 7, (0, 1)))
    # One that is dropped before it began.
    assert one(target, ImportDrop(GROUP, 9, (5,))) == DONE
    assert "over for slot 5" in refused(target, ImportBegin(GROUP, 9, (5,)))
    # One that is dropped while an older one still stands is the end of both.
    assert one(target, ImportDrop(GROUP, 9, (0,))) == DONE
    assert (roles(target, 8), roles(target, 9)) == (("none", "none"), ("none", "cancelled"))
    assert target.slot_state(0) is None


# -- steps of the source


def test_track_is_refused_where_it_must_be() -> None:
    source, target = pair()
    assert "does not serve slot 5" in refused(source, Track(GROUP, 7, (0, 5)))
    one(source, Track(GROUP, 7, (0, 1)))
    no_change(source, Track(GROUP, 7, (1, 0)))
    assert refused(source, Track(GROUP, 7, (0,))) == "the move has other slots"
    assert refused(source, Track(GROUP, 8, (0,))) == "slot 0 takes part in move 7"
    one(source, Freeze(GROUP, 7))
    no_change(source, Track(GROUP, 7, (0, 1)))
    assert "does not serve" in refused(source, Track(GROUP, 8, (0,)))
    one(target, ImportBegin(GROUP, 7, (0,)))
    assert refused(target, Track(GROUP, 7, (9,))) == "the group is the target of the move"
    assert "does not serve" in refused(target, Track(GROUP, 8, (0,)))


def test_freeze_and_release_only_what_they_may() -> None:
    source, _ = pair()
    assert "not the source" in refused(source, Freeze(GROUP, 7))
    assert "not the source" in refused(source, Release(GROUP, 7))
    one(source, Track(GROUP, 7, (0, 1)))
    assert refused(source, Release(GROUP, 7)) == "the slots are not frozen"
    source.apply(5_000, [Freeze(GROUP, 7)])
    source.apply(6_000, [Freeze(GROUP, 7)])
    assert msgpack.unpackb(summary_bytes(source))[0] == 5_000
    assert "not the source" in refused(source, Release(GROUP, 8))
    assert one(source, Release(GROUP, 7)) == DONE
    no_change(source, Release(GROUP, 7))
    for late in (Track(GROUP, 7, (0, 1)), Freeze(GROUP, 7), Untrack(GROUP, 7, (0, 1))):
        refused(source, late)
    refused(source, ImportDrop(GROUP, 7, (0, 1)))


def test_a_cancelled_move_leaves_the_source_as_it_was() -> None:
    source, _ = pair()
    one(source, Track(GROUP, 7, (0, 1)))
    one(source, Freeze(GROUP, 7))
    assert one(source, Untrack(GROUP, 7, (0, 1))) == DONE
    assert roles(source) == ("cancelled", "none")
    assert one(source, Put(0, b"k", b"v")).code == Code.OK
    no_change(source, Untrack(GROUP, 7, (0, 1)))
    for late in (Track(GROUP, 7, (0, 1)), Freeze(GROUP, 7), Release(GROUP, 7)):
        refused(source, late)
    assert one(source, Track(GROUP, 8, (1,))) == DONE
    no_change(source, Untrack(GROUP, 7, (0, 1)))
    assert refused(source, Untrack(GROUP, 9, (0, 1))) == "slot 1 takes part in move 8"
    refused(source, ImportDrop(GROUP, 8, (1,)))
    refused(source, ImportDrop(GROUP, 9, (1,)))
    # A move that is cancelled before it was tracked.
    assert one(source, Untrack(GROUP, 9, (0,))) == DONE
    assert "over for slot 0" in refused(source, Track(GROUP, 9, (0,)))


def test_what_came_due_while_frozen_goes_after_the_cancellation() -> None:
    source = make(0, 1)
    source.apply(2_000, [Put(slot, b"k", b"v", ttl=100, client=b"c" * 16, seq=1) for slot in (0, 1)])
    source.apply(2_000, [Put(0, b"later", b"v", ttl=2 * IDLE)])
    source.apply(2_050, [Track(GROUP, 7, (0,)), Freeze(GROUP, 7)])
    content = source._slots[0].records, source._slots[0].sessions
    source.apply(2_000 + IDLE, [TICK])
    assert [len(part) for part in content] == [2, 1], "content stays as it is while frozen"
    assert source.stats() == (2, 8, 1, 2)
    assert source.next_expiry() == 2_000 + 2 * IDLE, "no reason to tick for what is frozen"
    twin = restored(source.snapshot().chunks())
    for store in (source, twin):
        assert one(store, Untrack(GROUP, 7, (0,))) == DONE
        assert store.stats() == (1, 6, 0, 2)
        assert one(store, Put(0, b"k", b"v", client=b"c" * 16, seq=1)).code == Code.SESSION_EXPIRED
        assert store.next_expiry() == 2_000 + 2 * IDLE
        assert store._expiry.live == 1
    assert source.digest() == twin.digest()


def test_what_is_held_back_does_not_count_as_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_EXPIRED_PER_ENTRY", 1)
    store = make(0, 1)
    for at, slot in ((2_000, 0), (2_001, 1)):
        store.apply(at, [Put(slot, b"k", b"v", ttl=100, client=b"c" * 16, seq=1)])
    store.apply(2_050, [Track(GROUP, 7, (0,)), Freeze(GROUP, 7)])
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
    one(source, Put(1, b"first", b"v", ttl=50))
    both = [Put(0, b"k", b"v", ttl=100, client=b"c" * 16, seq=1), Put(0, b"l", b"v", ttl=2 * IDLE)]
    source.apply(SOURCE_TIME, both)
    stage(source, target, (0,))
    one(target, Activate(GROUP, 7))
    one(source, Release(GROUP, 7))
    stage(target, source, (0,), move=8)
    source.apply(SOURCE_TIME + 2 * IDLE, [TICK])
    assert state(source, 8).records == 2
    assert state(source, 8).record_bytes == 4
    assert source.stats().sessions == 1
    source.apply(SOURCE_TIME + 2 * IDLE, [Activate(GROUP, 8)])
    assert source.read(0, b"k").ttl == 100
    assert one(source, both[0]) == Result(Code.OK, 1)


def test_memory_of_released_slots_is_freed_little_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_FREED_PER_ENTRY", 7)
    source, target = pair()
    stage(source, target)
    snapshot = source.snapshot()
    digest = source.digest()
    one(source, Release(GROUP, 7))
    one(source, TICK)
    assert len(source.moves.trash) == 2, "the snapshot reads them"
    assert restored(snapshot.chunks()).digest() == digest
    left = []
    while source.moves.trash:
        one(source, TICK)
        assert in_order(source)
        left.append(sum(len(slot.records) + len(slot.sessions) for slot in source.moves.trash))
    assert left == [41, 34, 27, 20, 13, 6, 0][: len(left)] or left == sorted(left, reverse=True)
    assert all(a - b <= 7 for a, b in zip([48, *left], left, strict=False))
    assert source.stats().records == 20


def test_operations_are_counted_by_slot() -> None:
    store = make(0, 3)
    one(store, Put(0, b"k", b"1234"))
    store.read(0, b"k")
    store.read(0, b"none")
    store.scan(scan_of(0))
    store.read(1, b"k")
    assert store.slot_stats() == [(0, 1, 5, 4), (3, 0, 0, 0)]
