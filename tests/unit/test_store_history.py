"""Guarantee: a group keeps the last events of its slots, bounded, alike on all replicas, and they move with a slot."""

from __future__ import annotations

import pytest

from raftkv import limits
from raftkv.commands.base import Command
from raftkv.commands.group import Tick
from raftkv.commands.moving import Activate, Freeze, Release, Untrack
from raftkv.commands.records import Delete, Put
from raftkv.commands.transactions import DeleteStep, PutStep, Transact
from raftkv.commands.updates import Increment, Touch
from raftkv.store import history as module
from raftkv.store.history import Change, Event
from raftkv.store.records import Store
from raftkv.store.watching import Part, Watch, WatchAsk
from tests.store_helpers import DONE, GROUP, begin, copy, events_in, final, logged, make, one, restored, stage


def test_a_transaction_is_one_whole_and_an_expired_record_goes_first() -> None:
    store = make(0, now=0)
    one(store, Put(0, b"a", b"1", ttl=5), now=1)
    store.apply(6, [Transact(0, (), (PutStep(b"a", b"2"), PutStep(b"b", b"3"), DeleteStep(b"none")))])
    one(store, Touch(0, b"a", 50))
    assert events_in(store, 0) == [
        Event(0, 1, b"a", Change.PUT, b"1", False),
        Event(0, 2, b"a", Change.EXPIRE, None, False),
        Event(0, 3, b"a", Change.PUT, b"2", True),
        Event(0, 4, b"b", Change.PUT, b"3", False),
        Event(0, 5, b"a", Change.TOUCH, None, False),
    ]


def test_events_go_by_bytes_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HISTORY_BYTES", 20_000)
    monkeypatch.setattr(module, "_BLOCK_EVENTS", 3)
    store = make(0, 1, now=0)
    twin = make(0, 1, now=0)
    for number in range(300):
        for each in (store, twin):
            each.apply(number, [Put(number % 2, b"k%d" % number, b"v" * 100)])
        if number % 37 == 0:
            twin = restored(twin.snapshot().chunks())
        assert store.digest() == twin.digest()
    assert 18_000 < store.history.bytes <= 21_500
    kept = [len(events_in(store, slot)) for slot in (0, 1)]
    room = 20_000 // (limits.EVENT_OVERHEAD + 16 + 100 + 4)
    assert 0.8 * room < sum(kept) < 1.2 * room
    assert abs(kept[0] - kept[1]) <= 6


def test_an_entry_of_puts_is_a_block_that_tells_the_same_as_a_packed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_EVENTS", 2)
    client = b"c" * 16
    entries: list[list[Command]] = [
        [Put(0, b"a", b"1"), Put(1, b"a", b"2", ttl=5), Put(0, b"a", b"3")],
        [Put(0, b"b", b"1"), Delete(0, b"a")],
        # One that is refused and one that has expired: as many events as commands.
        [Put(1, b"a", b"4", expect=7), Put(1, b"a", b"5")],
        [Put(0, b"s", b"1", client=client, seq=1, first=1), Put(0, b"s", b"2", client=client, seq=2, first=1)],
        # Executed before, and new.
        [Put(0, b"s", b"2", client=client, seq=2, first=1), Put(0, b"s", b"3", client=client, seq=3, first=1)],
        [Put(9, b"elsewhere", b"1"), Put(1, b"c", b"1"), Put(1, b"d", b"1")],
        [Put(1, b"alone", b"1")],
        [Put(1, b"c", b"2"), Put(0, b"c", b"", ttl=30)],
        [Increment(0, b"n", 2), Put(0, b"n", b"1")],
    ]
    store, packed, twin = make(0, 1, now=0), make(0, 1, now=0), make(0, 1, now=0)
    for number, ops in enumerate(entries):
        now = 10 * number
        assert store.apply(*logged(now, ops)) == packed.apply(now, ops)
        for slot in (0, 1):
            assert events_in(store, slot) == events_in(packed, slot)
        # Goes on from a snapshot each time.
        twin.apply(*logged(now, ops))
        assert twin.digest() == store.digest()
        twin = restored(twin.snapshot().chunks())
        assert twin.digest() == store.digest()
        assert twin.history.blocks == store.history.blocks
    assert [block.numbers is not None for block in store.history.blocks] == [
        True, False, False, True, False, False, True, False,
    ]  # fmt: skip
    assert store.history.blocks[0].items() == packed.history.blocks[0].items()
    assert store.history.end == packed.history.end


def test_events_go_by_age_also_where_nothing_happens_any_more() -> None:
    store = make(0, 1, now=0)
    one(store, Put(0, b"a", b"1"), now=10)
    age = limits.HISTORY_AGE * 1000
    for now in range(0, age + age // 4, age // 100):
        one(store, Tick(), now=now)
        if now < age:
            assert len(events_in(store, 0)) == 1
    assert events_in(store, 0) == []
    slot = store.slot(0)
    assert slot is not None
    assert (slot.forgotten, slot.counter, store.history.bytes) == (1, 1, 0)


def test_events_move_with_their_slots_and_leave_nothing_behind() -> None:
    source, target = make(0, 1, now=0), make(9, now=0)
    for number in range(20):
        source.apply(1, [Put(0, b"%d" % (number % 3), b"%d" % number), Put(1, b"x", b"%d" % number)])
    begin(source, target, (0,))
    copy(source, target)
    source.apply(2, [Delete(0, b"0"), Put(0, b"n", b"new", ttl=7), Put(1, b"y", b"")])
    source.apply(20, [Tick()])
    wanted = events_in(source, 0)
    assert [event.change for event in wanted[-3:]] == [Change.DELETE, Change.PUT, Change.EXPIRE]
    assert one(source, Freeze(GROUP, 7)) == DONE
    copy(source, target)
    assert one(target, final(source)) == DONE
    target = restored(target.snapshot().chunks())
    assert one(target, Activate(GROUP, 7)) == DONE
    assert one(source, Release(GROUP, 7)) == DONE
    assert events_in(target, 0) == wanted
    assert events_in(source, 0) == []
    assert len(events_in(source, 1)) == 21
    one(target, Put(0, b"more", b""))
    assert events_in(target, 0)[-1].number == wanted[-1].number + 1
    # And back again.
    stage(target, source, (0,), 8)
    assert one(source, Activate(GROUP, 8)) == DONE
    assert [event.number for event in events_in(source, 0)] == list(range(1, wanted[-1].number + 2))


def test_two_moves_at_once_are_in_a_snapshot_with_their_events() -> None:
    source, target = make(0, 1, now=0), make(9, now=0)
    source.apply(1, [Put(slot, b"%d" % number, b"v") for slot in (0, 1) for number in range(3)])
    for slot, move in ((0, 7), (1, 8)):
        begin(source, target, (slot,), move)
        copy(source, target, move=move)
    again = restored(target.snapshot().chunks())
    assert again.digest() == target.digest()
    for slot, move in ((0, 7), (1, 8)):
        assert one(source, Freeze(GROUP, move)) == DONE
        copy(source, again, move=move)
        assert one(again, final(source, move)) == DONE
        assert one(again, Activate(GROUP, move)) == DONE
        assert events_in(again, slot) == events_in(source, slot)
        assert len(events_in(again, slot)) == 3


def test_what_goes_during_a_copy_is_not_missed_at_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HISTORY_BYTES", 5_000)
    monkeypatch.setattr(module, "_BLOCK_EVENTS", 2)
    source, target = make(0, 1, now=0), make(9, now=0)
    source.apply(1, [Put(slot, b"k", b"v") for slot in (0, 1)])
    begin(source, target)
    copy(source, target)
    for number in range(60):
        source.apply(2, [Put(1, b"%d" % number, b"v" * 100)])
    source.apply(3, [Put(0, b"k", b"w")])
    assert len(events_in(source, 0)) == 1
    assert one(source, Freeze(GROUP, 7)) == DONE
    copy(source, target)
    wanted = [events_in(source, slot) for slot in (0, 1)]
    assert one(target, final(source)) == DONE
    assert one(target, Activate(GROUP, 7)) == DONE
    assert [events_in(target, slot) for slot in (0, 1)] == wanted


def test_a_cancelled_move_changes_no_history() -> None:
    source, target = make(0, now=0), make(9, now=0)
    source.apply(1, [Put(0, b"k", b"v")])
    stage(source, target, (0,))
    assert one(source, Untrack(GROUP, 7, (0,))) == DONE
    one(source, Put(0, b"k", b"w"))
    assert [event.value for event in events_in(source, 0)] == [b"v", b"w"]


# What watches read


def watch_of(store: Store, *, initial: bool = False, prefix: bytes = b"", **places: int | None) -> tuple[Watch, Part]:
    numbers = {number: slot.counter for number in range(3) if (slot := store.slot(number)) is not None}
    ask = WatchAsk({int(name[1:]): after for name, after in places.items()}, None, prefix, initial)
    watch = Watch(store, ask, {slot: number for slot, number in numbers.items() if slot in ask.places})
    return watch, watch.open()


def told(watch: Watch) -> list[tuple[int, int]]:
    """(slot, number) of all events that it tells until there are none, where each span begins where the last ended."""
    found: list[tuple[int, int]] = []
    while part := watch.take():
        found += [(event.slot, event.number) for span in part.spans for event in span.events]
    return found


def puts(slot: int, *keys: bytes) -> list[Command]:
    return [Put(slot, key, b"v") for key in keys]


def test_a_watch_tells_what_comes_after_its_number_and_only_what_it_wants() -> None:
    store = make(0, 1, 2, now=0)
    store.apply(1, [*puts(0, b"a", b"b"), *puts(1, b"a")])
    watch, part = watch_of(store, s0=1, s1=None, prefix=b"a")
    assert part.opened == [(0, 1, 2), (1, 1, 1)]
    assert told(watch) == []
    assert watch.heartbeat().spans == [(0, 1, 2, [])], "it has looked at what it does not want"
    store.apply(1, [*puts(0, b"b", b"a"), *puts(2, b"a"), *puts(1, b"a")])
    part = watch.take()
    assert [(span.slot, span.after, span.upto) for span in part.spans] == [(0, 2, 4), (1, 1, 2)]
    assert [event.number for event in part.spans[0].events] == [4]
    assert not watch.take()
    assert watch.heartbeat().spans == []


def test_messages_are_bounded_and_commands_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCH_BYTES", 300)
    store = make(0, now=0)
    watch, _ = watch_of(store, s0=None)
    for _ in range(5):
        store.apply(1, [Transact(0, (), tuple(PutStep(b"%d" % number, b"v" * 100) for number in range(4)))])
    sizes = []
    while part := watch.take():
        (span,) = part.spans
        assert not span.events[-1].more
        sizes.append(len(span.events))
    assert sizes == [4] * 5


def test_a_slow_watch_learns_what_has_gone_and_nobody_else_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HISTORY_BYTES", 5_000)
    monkeypatch.setattr(module, "_BLOCK_EVENTS", 2)
    store = make(0, 1, now=0)
    slow, _ = watch_of(store, s0=None, s1=None)
    again, _ = watch_of(store, s0=0, s1=0, initial=True)
    quiet, _ = watch_of(store, s1=None)
    for number in range(150):
        store.apply(1, puts(0, b"%d" % (number % 7)))
    slot = store.slot(0)
    assert slot is not None
    assert slow.take().compacted == [(0, slot.forgotten)]
    assert told(quiet) == []
    part = again.take()
    assert [(image.number, image.begins, image.whole, len(image.records)) for image in part.images] == [
        (150, True, False, 7),
        (150, False, True, 0),
    ]
    store.apply(1, puts(0, b"x"))
    assert told(again) == [(0, 151)]
    _, part = watch_of(store, s0=3)
    assert part.compacted == [(0, slot.forgotten)]


def test_an_image_is_of_one_number_however_long_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCH_BYTES", 2_000)
    store = make(0, now=0)
    store.apply(1, puts(0, *(b"%03d" % number for number in range(500))))
    watch, part = watch_of(store, s0=None, initial=True)
    assert part.opened == [(0, None, 500)]
    records: list[bytes] = []
    pieces = 0
    whole = False
    while not whole:
        part = watch.take()
        pieces += 1
        store.apply(1, [Put(0, b"%03d" % pieces, b"later"), Delete(0, b"%03d" % (499 - pieces))])
        records += [row[0] for image in part.images for row in image.records]
        assert {image.number for image in part.images} == {500}
        whole = any(image.whole for image in part.images)
    assert pieces > 3
    assert sorted(records) == [b"%03d" % number for number in range(500)]
    assert told(watch) == [(0, 501 + number) for number in range(2 * pieces)]
    home = store.slot(0)
    assert home is not None
    assert home.pins == 0


def test_a_slot_that_has_gone_is_told_and_the_watch_goes_on_where_it_is() -> None:
    source, target = make(0, 1, now=0), make(9, now=0)
    watch, _ = watch_of(source, s0=None, s1=None)
    source.apply(1, puts(0, b"a"))
    assert told(watch) == [(0, 1)]
    stage(source, target, (0,))
    assert one(target, Activate(GROUP, 7)) == DONE
    assert one(source, Release(GROUP, 7)) == DONE
    assert watch.take().released == [0]
    assert watch.slots == {1}
    target.apply(1, puts(0, b"b"))
    there, part = watch_of(target, s0=1)
    assert part.opened == [(0, 1, 2)]
    assert told(there) == [(0, 2)]


def test_a_slot_that_comes_back_without_events_that_a_watch_has_not_seen_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_HISTORY_BYTES", 5_000)
    monkeypatch.setattr(module, "_BLOCK_EVENTS", 2)
    home, other = make(0, 1, now=0), make(9, now=0)
    watch, _ = watch_of(home, s0=None, s1=None)
    again, _ = watch_of(home, s0=0, initial=True)
    stage(home, other, (0,))
    assert one(other, Activate(GROUP, 7)) == DONE
    assert one(home, Release(GROUP, 7)) == DONE
    for number in range(80):
        other.apply(1, [Put(0, b"%d" % (number % 7), b"v" * 100)])
    stage(other, home, (0,), 8)
    assert one(home, Activate(GROUP, 8)) == DONE
    slot = home.slot(0)
    assert slot is not None
    assert watch.take().compacted == [(0, slot.forgotten)]
    assert [image.number for image in again.take().images] == [80, 80]


def test_an_image_ends_when_its_slot_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCH_BYTES", 2_000)
    source, target = make(0, 1, now=0), make(9, now=0)
    source.apply(1, puts(0, *(b"%03d" % number for number in range(300))))
    watch, _ = watch_of(source, s0=None, s1=0, initial=True)
    assert next(image.begins for image in watch.take().images)
    home = source.slot(0)
    assert home is not None
    stage(source, target, (0,))
    assert one(target, Activate(GROUP, 7)) == DONE
    assert one(source, Release(GROUP, 7)) == DONE
    part = watch.take()
    assert (part.released, part.images, home.pins) == ([0], [], 0)
    source.apply(1, puts(1, b"a"))
    assert told(watch) == [(1, 1)]
