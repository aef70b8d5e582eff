"""Guarantees: each step of a slot move does what it says once, and refuses, without a change, what it must not do."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from raftkv import limits
from raftkv.errors import Code
from raftkv.store import Kind, Op, Result, SlotState, Store
from raftkv.store.digest import content_digest
from raftkv.store.operations import MAX_EXPIRES
from tests.store_helpers import one, restored, step

IDLE = limits.SESSION_IDLE * 1000
TICK = Op(Kind.TICK, 0, b"")
DONE = Result(Code.OK)
SOURCE_TIME, TARGET_TIME = 1_000, 5_000_000


def make(*slots: int, now: int = SOURCE_TIME) -> Store:
    store = Store()
    store.apply(now, [Op(Kind.GENESIS, 0, b"", msgpack.packb(slots))])
    return store


def pair() -> tuple[Store, Store]:
    """Source of slots 0 and 1 with some content, and a target that has slot 9."""
    source, target = make(0, 1, 2), make(9, now=TARGET_TIME)
    for i in range(60):
        who = (i % 4 + 1).to_bytes(16, "big")
        source.apply(
            SOURCE_TIME + i,
            [Op(Kind.PUT, i % 3, b"key%d" % i, b"v" * i, ttl=500 if i % 5 == 0 else 0, client=who, seq=i + 1)],
        )
    return source, target


def state(store: Store, move: int = 7) -> dict[str, Any]:
    value = store.move_state(move).value
    assert value is not None
    found: dict[str, Any] = msgpack.unpackb(value)
    return found


def roles(store: Store, move: int = 7) -> tuple[str, str]:
    found = state(store, move)
    return found["source"], found["target"]


def refused(store: Store, op: Op) -> str:
    """The step is refused and changes nothing; returns why."""
    before = store.digest()
    result = one(store, op)
    assert result.code == Code.CONDITION_FAILED
    assert store.digest() == before
    return result.detail


def no_change(store: Store, op: Op) -> None:
    """The step is answered as done and changes nothing."""
    before = store.digest()
    assert one(store, op).code == Code.OK
    assert store.digest() == before


def page(source: Store, target: Store, limit: int = 300, move: int = 7) -> tuple[Op, bool]:
    """The command that brings the next page to the target, and whether nothing is left after it."""
    at = state(target, move)
    value = source.export(move, at["cursor"], limit).value
    assert value is not None
    cursor, blob, _, _, done = msgpack.unpackb(value)
    return step(Kind.IMPORT_CHUNK, move, at["seq"] + 1, cursor, blob), done


def copy(source: Store, target: Store, limit: int = 300, move: int = 7) -> int:
    """Copy until nothing is left; returns the number of pages."""
    pages, done = 0, False
    while not done:
        chunk, done = page(source, target, limit, move)
        pages += 1
        assert one(target, chunk).code == Code.OK
    return pages


def begin(source: Store, target: Store, slots: tuple[int, ...] = (0, 1), move: int = 7) -> None:
    assert one(target, step(Kind.IMPORT_BEGIN, move, slots)) == DONE
    assert one(source, step(Kind.TRACK, move, slots)) == DONE


def final(source: Store, move: int = 7) -> Op:
    summary = source.summary(move)
    assert summary.code == Code.OK
    return step(Kind.IMPORT_FINAL, move, summary.value)


def stage(source: Store, target: Store, slots: tuple[int, ...] = (0, 1), move: int = 7) -> None:
    begin(source, target, slots, move)
    copy(source, target, move=move)
    assert one(source, step(Kind.FREEZE, move)) == DONE
    copy(source, target, move=move)
    assert one(target, final(source, move)) == DONE


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
        summary = msgpack.unpackb(source.summary(7).value)
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
    assert msgpack.unpackb(source.summary(7).value)[0] == 5_000
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


# -- what is copied


def test_changes_are_sent_in_the_order_of_their_last_change() -> None:
    source, target = make(0), make(9)
    source.apply(1, [Op(Kind.PUT, 0, b"%02d" % i, b"old") for i in range(50)])
    begin(source, target, (0,))
    copy(source, target)
    assert state(target)["records"] == 50
    source.apply(1, [Op(Kind.PUT, 0, b"%02d" % i, b"new") for i in (40, 5, 30)])
    source.apply(1, [Op(Kind.DELETE, 0, b"05"), Op(Kind.PUT, 0, b"40", b"newest"), Op(Kind.PUT, 0, b"xx", b"")])
    assert list(source._slots[0].dirty or ()) == [b"30", b"05", b"40", b"xx"]
    chunk, done = page(source, target, limit=1)
    assert not done
    assert msgpack.unpackb(msgpack.unpackb(chunk.value)[3])[1] == [[0, [b"30", b"new", 53, 0], [], []]]
    one(target, chunk)
    # What changed again has moved to the end.
    one(source, Op(Kind.DELETE, 0, b"40"))
    assert copy(source, target, limit=1) == 3
    assert target._slots[0].records == source._slots[0].records
    assert page(source, target)[1]


def test_keys_that_come_and_go_during_a_walk() -> None:
    source, target = make(0), make(9)
    source.apply(1, [Op(Kind.PUT, 0, b"%02d" % i, b"old") for i in range(0, 50, 2)])
    begin(source, target, (0,))
    for i in range(0, 50, 3):
        chunk, _ = page(source, target, limit=60)
        one(target, chunk)
        source.apply(1, [Op(Kind.PUT, 0, b"%02d" % i, b"new"), Op(Kind.DELETE, 0, b"%02d" % (49 - i))])
    copy(source, target)
    assert target._slots[0].records == source._slots[0].records


def test_a_page_costs_what_it_holds_not_what_the_slot_holds() -> None:
    source, target = make(0), make(9)
    source.apply(1, [Op(Kind.PUT, 0, b"%05d" % i, b"v" * 10) for i in range(20_000)])
    begin(source, target, (0,))
    chunk, _ = page(source, target, limit=5_000)
    one(target, chunk)
    walk = source._slots[0].walk
    # New keys make other reads sort again, but not the walk.
    one(source, Op(Kind.PUT, 0, b"new", b""))
    value = source.export(7, state(target)["cursor"], 5_000).value
    assert source._slots[0].walk is walk
    assert value is not None
    _, blob, records, size, done = msgpack.unpackb(value)
    assert len(blob) < 7_000
    assert 19_000 < records < 20_000
    assert 0.9 < size / (15 * records) < 1.1
    assert not done


def test_any_replica_goes_on_from_a_cursor() -> None:
    source, target = pair()
    begin(source, target)
    behind = restored(source.snapshot().chunks())
    while True:
        source = restored(source.snapshot().chunks())
        chunk, done = page(source, target, limit=100)
        one(target, chunk)
        if done:
            break
        one(source, Op(Kind.PUT, 0, b"key0", b"again"))
        if state(target)["seq"] == 20:
            break
    copy(source, target)
    result = behind.export(7, state(target)["cursor"], 0)
    assert result == Result(Code.CONDITION_FAILED, detail="this replica is behind the cursor")
    one(source, step(Kind.FREEZE, 7))
    copy(source, target)
    assert one(target, final(source)) == DONE


def test_expired_records_are_not_copied() -> None:
    source, target = make(0), make(9)
    count = limits.MAX_EXPIRED_PER_ENTRY
    source.apply(2_000, [Op(Kind.PUT, 0, b"%d" % i, b"v", ttl=5) for i in range(count + 10)])
    begin(source, target, (0,))
    source.apply(2_005, [step(Kind.FREEZE, 7)])
    assert source.stats().records == count + 10
    copy(source, target, limit=100_000)
    assert state(target)["records"] == 0
    assert one(target, final(source)) == DONE


def test_reads_refuse_what_they_cannot_answer() -> None:
    source, target = pair()
    assert source.export(7, b"", 0).code == Code.CONDITION_FAILED
    assert source.summary(7).code == Code.CONDITION_FAILED
    begin(source, target)
    assert source.summary(7).code == Code.CONDITION_FAILED
    assert target.export(7, b"", 0).code == Code.CONDITION_FAILED
    for bad in (0, -1, 2**63, "x", None, True):
        for result in (source.move_state(bad), source.export(bad, b"", 0), source.summary(bad)):  # type: ignore[arg-type]
            assert result.code == Code.INVALID_ARGUMENT
    for cursor in (
        b"\xc1",
        b"\x01",
        msgpack.packb([]),
        msgpack.packb([[0, 0], None, None, None]),
        msgpack.packb([[0], None, None]),
        msgpack.packb([[0, 0, 0], b"", None]),
        msgpack.packb([[], b"", None]),
        msgpack.packb([[-1, 0], None, None]),
        msgpack.packb([[0, True], None, None]),
        msgpack.packb([[0, 0], "x", None]),
        msgpack.packb([[0, 0], b"x" * (limits.MAX_KEY_BYTES + 1), None]),
        msgpack.packb([[0, 0], b"", [0, b""]]),
        msgpack.packb([[0, 0], None, [3, b""]]),
        msgpack.packb([[0, 0], None, [0, b"short"]]),
        msgpack.packb([[0, 0], None, [0]]),
        msgpack.packb([[0, 0], None, 5]),
    ):
        assert source.export(7, cursor, 0).code == Code.INVALID_ARGUMENT
    assert source.export(7, None, 0).code == Code.INVALID_ARGUMENT  # type: ignore[arg-type]


def test_malformed_steps_change_nothing() -> None:
    source, target = pair()
    begin(source, target)
    good, _ = page(source, target)
    cursor, blob = msgpack.unpackb(good.value)[2:]
    start, parts = msgpack.unpackb(blob)

    def chunk(*part: object) -> Op:
        return step(Kind.IMPORT_CHUNK, 7, 1, cursor, msgpack.packb([b"", [part]]))

    session = [b"c" * 16, 1, 5, 5, 1, 1]
    assert one(restored(target.snapshot().chunks()), chunk(0, [b"k", b"v", 1, 0], [b"d"], [session])).code == Code.OK
    before = target.digest()
    for bad in (
        chunk(2, [], [], []),
        chunk("0", [], [], []),
        chunk(0, [b"k", b"v", 1], [], []),
        chunk(0, [b"k", "v", 1, 0], [], []),
        chunk(0, [b"", b"v", 1, 0], [], []),
        chunk(0, [b"k", b"v" * (limits.MAX_VALUE_BYTES + 1), 1, 0], [], []),
        chunk(0, [b"k", b"v", 0, 0], [], []),
        chunk(0, [b"k", b"v", 1, -1], [], []),
        chunk(0, [b"k", b"v", 1, 2**62], [], []),
        chunk(0, [], ["k"], []),
        chunk(0, [], [], [session[:-1]]),
        chunk(0, [], [], [[b"short", *session[1:]]]),
        chunk(0, [], [], [[*session[:2], 2**63, *session[3:]]]),
        chunk(0, [], [], [[*session[:3], -(2**63), *session[4:]]]),
        chunk(0, [], [], [[*session[:4], 0, 1]]),
        chunk(0, [], [], [[*session[:5], 2**63]]),
        chunk(0, [], [], [[session[0], -1, *session[2:]]]),
        chunk(0, [], []),
        chunk(0, 1, 2, 3),
        step(Kind.IMPORT_CHUNK, 7, 1, cursor, b"\xc1"),
        step(Kind.IMPORT_CHUNK, 7, 1, cursor, msgpack.packb(5)),
        step(Kind.IMPORT_CHUNK, 7, 1, cursor, None),
        step(Kind.IMPORT_CHUNK, 7, 1, "x", blob),
        step(Kind.IMPORT_CHUNK, 7, 0, cursor, blob),
        step(Kind.IMPORT_CHUNK, 7, 1, cursor),
        step(Kind.IMPORT_FINAL, 7, b""),
        step(Kind.IMPORT_FINAL, 7, msgpack.packb([0, [[0, 0, b""]], 0, b"0" * 16])),
        step(Kind.IMPORT_FINAL, 7, msgpack.packb([0, [[0, 0, b""], [1, -1, b""]], 0, b"0" * 16])),
        step(Kind.IMPORT_FINAL, 7, msgpack.packb([0, [[0, 0, b""], [1, 0, b"x"]], 0, b"0" * 16])),
        step(Kind.IMPORT_FINAL, 7, msgpack.packb([2**62, [[0, 0, b""], [1, 0, b""]], 0, b"0" * 16])),
        step(Kind.IMPORT_FINAL, 7, msgpack.packb([0, [[0, 0, b""], [1, 0, b""]], 0, b"short"])),
        step(Kind.IMPORT_FINAL, 7, msgpack.packb([0, 5, 0, b"0" * 16])),
        *[step(kind, *bad) for kind in (Kind.ACTIVATE, Kind.FREEZE, Kind.RELEASE) for bad in ([], [0], ["x"], [7, 7])],
        *[
            step(kind, 7, slots)
            for kind in (Kind.IMPORT_BEGIN, Kind.IMPORT_DROP, Kind.TRACK, Kind.UNTRACK)
            for slots in ([], [-1], [65536], [1, 1], ["x"], [True], 5, None)
        ],
        Op(Kind.TRACK, 0, b"", None),
        Op(Kind.TRACK, 0, b"", b"\xc1"),
        Op(Kind.CHECK, 0, b"", b"\xc1"),
        Op(Kind.CHECK, 0, b"", None),
        step(Kind.CHECK),
        step(Kind.CHECK, "x"),
        step(Kind.MOVE_STATE, 7),
        step(Kind.EXPORT, 7, b"", 1),
    ):
        assert one(target, bad).code == Code.INVALID_ARGUMENT, bad
        assert target.digest() == before
    assert start == b""
    assert parts
    assert one(target, good) == Result(Code.OK, 1)


@pytest.mark.parametrize("frozen", [0, MAX_EXPIRES])
def test_times_at_their_bounds_stay_within_64_bits(frozen: int) -> None:
    target = make(9, now=2**60)
    one(target, step(Kind.IMPORT_BEGIN, 7, [0]))
    rows = [[b"c" * 16, 0, -MAX_EXPIRES, MAX_EXPIRES, 2**62, -(2**62) - 1]]
    one(
        target,
        step(Kind.IMPORT_CHUNK, 7, 1, b"", msgpack.packb([b"", [[0, [b"k", b"", 2**62, MAX_EXPIRES], [], rows]]])),
    )
    records, digest = content_digest([target._slots[0]], frozen)
    summary = msgpack.packb([frozen, [[0, 2**62, b"f" * 16]], records, digest])
    assert one(target, step(Kind.IMPORT_FINAL, 7, summary)) == DONE
    assert one(target, step(Kind.ACTIVATE, 7)) == DONE
    assert one(target, Op(Kind.PUT, 0, b"n", b"", ttl=limits.MAX_TTL * 1000)).code == Code.OK
    assert restored(target.snapshot().chunks()).digest() == target.digest()


def test_operations_are_counted_by_slot() -> None:
    store = make(0, 3)
    one(store, Op(Kind.PUT, 0, b"k", b"1234"))
    store.read(0, b"k")
    store.read(0, b"none")
    store.scan(0, b"", 0)
    store.read(1, b"k")
    assert store.slot_stats() == [(0, 1, 5, 4), (3, 0, 0, 0)]
