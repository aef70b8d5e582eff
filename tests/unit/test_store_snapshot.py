"""Guarantees: a snapshot is the state of one moment whatever is written meanwhile; a restore brings back all of it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from raftkv import limits
from raftkv.commands.group import Check, Genesis
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
from raftkv.commands.records import Delete, Put
from raftkv.errors import Code, StorageError
from raftkv.store.digest import content_digest
from raftkv.store.packed import packed
from raftkv.store.records import Store
from raftkv.store.slot import SlotState
from raftkv.store.snapshot import StoreRestore
from tests.store_helpers import GROUP, content, in_order, logged, make, one, restored

ROOT = Path(__file__).parents[2]
SLOTS = 8


def filled() -> Store:
    store = Store()
    store.apply(5, [Genesis(tuple(range(SLOTS)))])
    for i in range(400):
        ttl = 1000 + i if i % 3 == 0 else 0
        who = (i % 5 + 1).to_bytes(16, "big")
        op = Put(i % SLOTS, b"key%d" % (i % 300), b"x" * i, ttl=ttl, client=who, seq=i + 1, first=max(1, i - 60))
        store.apply(10 + i, [op])
    store.apply(500, [Delete(3, b"key3"), Put(0, b"\x00\xff", b"")])
    return store


def change_everything(store: Store) -> None:
    for slot in range(SLOTS):
        writes = [Put(slot, b"key%d" % i, b"new", ttl=5) for i in range(0, 300, 7)]
        removals = [Delete(slot, b"key%d" % i) for i in range(0, 300, 3)]
        who = Put(slot, b"s", b"", client=(3).to_bytes(16, "big"), seq=9999, first=9999)
        store.apply(store.time + 10, [*writes, *removals, who])


def test_everything_survives() -> None:
    store = filled()
    # The state of a slot is part of it, and so are the floors of sessions that have gone.
    store.apply(500, [Track(GROUP, 1, (5,)), Freeze(GROUP, 1)])
    store._slots[6].floor = b"f" * 16
    other = restored(store.snapshot().chunks())
    assert other.digest() == store.digest()
    assert in_order(other)
    assert (other.time, other.genesis, other.stats()) == (store.time, True, store.stats())
    assert other.next_expiry() == store.next_expiry()
    assert other.slot_state(5) is SlotState.FROZEN
    for slot in range(SLOTS):
        assert content(other, slot) == content(store, slot)
    change_everything(store)
    change_everything(other)
    assert other.digest() == store.digest()


def test_an_empty_store_survives() -> None:
    other = restored(Store().snapshot().chunks())
    assert other.digest() == Store().digest()
    assert not other.genesis


def test_later_writes_do_not_change_a_snapshot() -> None:
    store = filled()
    reference = list(filled().snapshot().chunks())
    snapshot = store.snapshot()
    change_everything(store)
    assert list(snapshot.chunks()) == reference
    assert restored(reference).digest() == filled().digest()


def test_writes_between_chunks_do_not_change_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_CHUNK_BYTES", 500)
    monkeypatch.setattr("raftkv.store.snapshot._ITEM_BYTES", 100)
    store = filled()
    before = store.digest()
    chunks = []
    for chunk in store.snapshot().chunks():
        chunks.append(chunk)
        change_everything(store)
    assert len(chunks) > 20
    assert restored(chunks).digest() == before


def test_several_snapshots_at_once() -> None:
    store = filled()
    expected, open_ones = [], []
    for _ in range(4):
        expected.append(store.digest())
        open_ones.append(store.snapshot())
        change_everything(store)
    first, second, third, fourth = open_ones
    third.close()
    assert restored(second.chunks()).digest() == expected[1]
    change_everything(store)
    assert restored(fourth.chunks()).digest() == expected[3]
    assert restored(first.chunks()).digest() == expected[0]


def test_copying_ends_with_the_snapshot() -> None:
    store = filled()
    records = [store._slots[slot].records for slot in range(SLOTS)]
    for finish in ("close", "drain", "close half-way"):
        one, two = store.snapshot(), store.snapshot()
        if finish == "drain":
            assert list(one.chunks())
        elif finish == "close half-way":
            next(one.chunks())
        one.close()
        one.close()
        assert list(one.chunks()) == []
        assert [store._slots[slot].pins for slot in range(SLOTS)] == [1] * SLOTS
        two.close()
        assert [store._slots[slot].pins for slot in range(SLOTS)] == [0] * SLOTS
    change_everything(store)
    assert all(store._slots[slot].records is records[slot] for slot in range(SLOTS))


def test_a_slot_is_copied_once() -> None:
    store = filled()
    snapshot = store.snapshot()
    change_everything(store)
    copied = [store._slots[slot].records for slot in range(SLOTS)]
    change_everything(store)
    assert all(store._slots[slot].records is copied[slot] for slot in range(SLOTS))
    snapshot.close()
    assert [store._slots[slot].pins for slot in range(SLOTS)] == [0] * SLOTS


def test_a_restore_does_not_disturb_an_open_snapshot() -> None:
    store, other = filled(), Store()
    before = store.digest()
    snapshot = store.snapshot()
    restore = store.begin_restore()
    for chunk in other.snapshot().chunks():
        restore.feed(chunk)
    assert store.digest() == before
    restore.finish()
    assert store.digest() == other.digest()
    assert restored(snapshot.chunks()).digest() == before


def test_chunks_have_about_the_size_asked_for() -> None:
    store = Store()
    store.apply(1, [Genesis((0, 1))])
    store.apply(1, [Put(i % 2, b"%d" % i, b"x" * 1000) for i in range(2000)])
    sizes = [len(chunk) for chunk in store.snapshot().chunks()]
    assert len(sizes) >= 7
    assert max(sizes) < limits.SNAPSHOT_CHUNK_BYTES * 1.2
    assert min(sizes[:-1]) >= limits.SNAPSHOT_CHUNK_BYTES


def test_what_is_no_whole_snapshot_is_refused_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_CHUNK_BYTES", 1 << 20)
    store = filled()
    before = store.digest()
    (chunk,) = filled().snapshot().chunks()
    packed = [msgpack.packb(item) for item in items_of(chunk)]
    for bad in (
        b"",
        b"\xc1",
        chunk[:-1],
        chunk + b"\x00",
        packed[1] + packed[2],
        b"".join(packed[:3] + packed[4:]),
        b"".join(packed[:-2] + packed[-1:]),
        b"".join([packed[0], *reversed(packed[1:-1]), packed[-1]]),
        msgpack.packb(["another format", 1, True]) + b"".join(packed[1:]),
        packed[0] + msgpack.packb([1, 0, 9, 0, b"", 0, 0]) + packed[-1],
        packed[0] + msgpack.packb([1, "0", 1, 0, b"", 0, 0]) + packed[-1],
        packed[0] + msgpack.packb([1, 0, 1, 9, b"", 0, 0]) + msgpack.packb([2, 0, b"k", b"v", 1]),
        packed[0] + msgpack.packb([1, 0, 1, 9, b"", 0, 0]) + msgpack.packb([3, 0, [b"c", 1]]),
        packed[0] + msgpack.packb([1, 0, 1, 9, b"", 0, 0]) + msgpack.packb([3, 0, [b"c", 1, 1, 1, 5]]),
    ):
        restore = store.begin_restore()
        with pytest.raises(StorageError):
            feed_and_finish(restore, bad)
        assert store.digest() == before


def test_blocks_that_hold_no_events_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv.store.history._BLOCK_EVENTS", 2)
    monkeypatch.setattr(limits, "SNAPSHOT_CHUNK_BYTES", 1 << 20)
    store = filled()
    before = store.digest()
    source = make(0, now=0)
    now, puts, entry = logged(1, [Put(0, b"a", b"1"), Put(0, b"b", b"2")])
    source.apply(now, puts, entry)
    source.apply(2, [Put(0, b"c", b"3"), Delete(0, b"a")])
    one(source, Put(0, b"d", b"4"), now=3)
    (chunk,) = source.snapshot().chunks()
    items = items_of(chunk)
    data, first, more, second, last = (at for at, item in enumerate(items) if item[0] in (10, 11, 12))
    assert (items[data][1], items[first][1], items[second][1]) == (entry, [1, 2], None)
    _, numbers, size, until = items[first]
    other = logged(1, [Put(0, b"a", b"1"), Delete(0, b"b")])[2].tobytes()
    for at, change in (
        (first, [11, numbers, size]),
        (first, [11, numbers, size, until, 1]),
        (first, [11, None, size, until]),
        (first, [11, [1], size, until]),
        (first, [11, [1, 2, 3], size, until]),
        (first, [11, [1, "2"], size, until]),
        (first, [11, [1, -2], size, until]),
        (first, [11, [1, 1 << 63], size, until]),
        (first, [11, 2, size, until]),
        (first, [11, numbers, None, until]),
        (first, [11, numbers, size, b""]),
        (first, items[data]),
        (data, [12]),
        (data, [12, entry[:-1].tobytes()]),
        (data, [12, "entry"]),
        (data, [12, b""]),
        (data, [12, other]),
        (more, [12, items[more][1][:-1]]),
        (more, [12, msgpack.packb([0, b"k"])]),
        (more, [12, msgpack.packb([1 << 40, b"k", b"x" * 16])]),
        (more, [12, msgpack.packb(3)]),
        (more, items[last]),
        (last, items[data]),
        (last, items[first]),
    ):
        changed = [*items[:at], change, *items[at + 1 :]]
        with pytest.raises(StorageError):
            feed_and_finish(store.begin_restore(), b"".join(msgpack.packb(item) for item in changed))
        assert store.digest() == before
    assert restored([chunk]).digest() == source.digest()
    late = [*items[:more], items[last], *items[more:last], *items[last + 1 :]]
    with pytest.raises(StorageError, match="behind events"):
        feed_and_finish(store.begin_restore(), b"".join(msgpack.packb(item) for item in late))


def moving() -> Store:
    """As filled, with slot 1 tracked, 2 frozen, 3 gone, and 20 being imported, 21 staged, 22 given up."""
    store = filled()
    tracks = [Track(GROUP, move, (slot,)) for move, slot in ((11, 1), (12, 2), (13, 3))]
    freezes = [Freeze(GROUP, 12), Freeze(GROUP, 13), Release(GROUP, 13)]
    imports = [ImportBegin(GROUP, slot, (slot,)) for slot in (20, 21, 22)]
    session = [b"c" * 16, 1, 5, 5, 1, 1]
    pages = [
        ImportChunk(
            GROUP,
            move,
            1,
            b"next",
            msgpack.packb([b"", [[move, [b"k", b"v", 5, 90], [], [session]]], [move, b"k", packed(b"v", 5, 90)]]),
        )
        for move in (20, 21, 22)
    ]
    store.apply(510, [*tracks, *imports, *pages])
    records, digest = content_digest([store._slots[21]], [([21, b"k", packed(b"v", 5, 90)], 3)], [4], 80)
    ends = [ImportFinal(GROUP, 21, msgpack.packb([80, [[21, 5, b"", 4]], records, digest]))]
    change_everything(store)
    results = store.apply(520, [*freezes, *ends, ImportDrop(GROUP, 22, (22,))])
    assert {result.code for result in results} == {Code.OK}
    return store


def test_moves_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    store = moving()
    chunks = list(store.snapshot().chunks())
    monkeypatch.setattr("raftkv.store.snapshot._ITEM_BYTES", 100)
    items = [item for chunk in store.snapshot().chunks() for item in items_of(chunk)]
    assert sum(item[0] == 5 for item in items) > 10, "changed keys come in items of their size"
    for other in (restored(chunks), restored(store.snapshot().chunks())):
        assert other.digest() == store.digest()
        states = [store.slot_state(slot) for slot in (1, 2, 3, 20, 21, 22)]
        assert [other.slot_state(slot) for slot in (1, 2, 3, 20, 21, 22)] == states
        for move in (11, 12, 13, 20, 21, 22, 99):
            assert other.move_state(move) == store.move_state(move)
            for cursor in (b"", msgpack.packb([[50], None, None])):
                assert other.export(move, cursor, 500) == store.export(move, cursor, 500)
            assert other.summary(move) == store.summary(move)


def test_later_changes_of_a_tracked_slot_do_not_change_a_snapshot() -> None:
    store = moving()
    reference = list(moving().snapshot().chunks())
    snapshot = store.snapshot()
    change_everything(store)
    store.apply(
        store.time + 1000,
        [
            Activate(GROUP, 21),
            Put(21, b"new", b""),
            ImportChunk(GROUP, 20, 2, b"", msgpack.packb([b"next", [[20, [b"n", b"", 6, 0], [b"k"], []]]])),
            Release(GROUP, 12),
            Untrack(GROUP, 11, (1,)),
        ],
    )
    store.apply(store.time, [])
    assert list(snapshot.chunks()) == reference
    assert store.moves.trash
    store.apply(store.time, [])
    assert not store.moves.trash
    assert {slot.pins for slot in store._slots.values()} == {0}


def test_moves_that_do_not_fit_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_CHUNK_BYTES", 1 << 20)
    (chunk,) = moving().snapshot().chunks()
    items = items_of(chunk)
    restored([chunk])

    def where(kind: int, slot: int) -> int:
        return next(at for at, item in enumerate(items) if item[0] == kind and slot in item[1:2])

    at_slot, at_dirty, at_import = where(1, 1), where(5, 1), where(7, 20)
    for at, change in (
        (at_slot, [1, 1, 2, 100, b"", 0, 0]),
        (at_slot, [1, 1, 1, 100, b"", 0, 0]),
        (at_slot, [1, 1, 1, 1, b"", 11, 0]),
        (at_slot, [1, 1, 3, 100, b"", 11, 0]),
        (where(1, 20), [1, 20, 3, 0, b"", 21, 0]),
        (where(1, 22 - 1), [1, 21, 1, 0, b"", 0, 0]),
        (at_import, [7, 20, 1, b"", None, [20, 23]]),
        (at_import, [7, 20, 1, b"", None, []]),
        (at_import, [7, 20, 1, "", None, [20]]),
        (at_import, [7, 20, 1, b"", "x", [20]]),
        (at_dirty, [5, 1, *items[at_dirty][:1:-1]]),
        (at_dirty, items[at_dirty][:-2]),
        (where(6, 3), [6, 3, 13, 1, 22, 22, 9]),
        (where(6, 3), [6, 3, 13, 1, 22, 22, 4, 1, 11, 1]),
        (where(6, 3), [6, 3, 13]),
    ):
        changed = [*items[:at], change, *items[at + 1 :]]
        store = filled()
        before = store.digest()
        with pytest.raises(StorageError):
            feed_and_finish(store.begin_restore(), b"".join(msgpack.packb(item) for item in changed))
        assert store.digest() == before
    late = [*items[:at_import], *items[at_import + 1 : -1], items[at_import], items[-1]]
    with pytest.raises(StorageError):
        restored([b"".join(msgpack.packb(item) for item in late)])


def test_a_check_is_of_the_state_as_of_its_entry() -> None:
    store = moving()
    twin = restored(store.snapshot().chunks())
    for each in (store, twin):
        assert one(each, Check(GROUP, 5), now=600).code == Code.OK
        change_everything(each)
    check, other = store.checks[5], twin.checks[5]
    assert check.result() is None
    assert one(twin, Check(GROUP, 6)).code == Code.OK
    steps = 1
    while not check.step():
        steps += 1
    assert steps > store.stats().slots, "a slot takes several pieces"
    assert check.step()
    while not other.step():
        change_everything(twin)
    result = check.result()
    assert result is not None
    assert result == other.result()
    assert sorted(result[0]) == [0, 1, 2, 4, 5, 6, 7, 20, 21]
    for each in (store, twin):
        one(each, Check(GROUP, 7))
        while not each.checks[7].step():
            pass
    assert store.checks[7].result() != twin.checks[7].result(), "the twin changed more"
    twin.checks[6].close()
    assert {slot.pins for each in (store, twin) for slot in each._slots.values()} == {0}


def test_two_checks_are_kept_and_a_restore_ends_them() -> None:
    store = filled()
    for check in (1, 2, 3, 2):
        one(store, Check(GROUP, check))
        assert len(store.checks) <= 2
    assert sorted(store.checks) == [2, 3]
    assert {slot.pins for slot in store._slots.values()} == {2}
    third = store.checks[3]
    third.step()
    one(store, Check(GROUP, 4))
    assert third.result() is None
    assert third.step()
    assert third.result() is None, "what was cut short has no result"
    restore = store.begin_restore()
    for chunk in store.snapshot().chunks():
        restore.feed(chunk)
    slots = list(store._slots.values())
    restore.finish()
    assert store.checks == {}
    assert {slot.pins for slot in slots} == {0}


def items_of(chunk: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(chunk)
    return list(unpacker)


def feed_and_finish(restore: StoreRestore, chunk: bytes) -> None:
    restore.feed(chunk)
    restore.finish()


def test_digest_tells_states_apart() -> None:
    digests = {filled().digest()}
    for change in (
        Put(0, b"key0", b"other"),
        Delete(0, b"key0"),
        Put(1, b"key1", b"x", client=b"c" * 16, seq=1),
        Put(1, b"key1", b"x", client=b"c" * 16, seq=2),
        Put(1, b"key1", b"x", ttl=5),
    ):
        store = filled()
        assert store.apply(500, [change])[0].code == Code.OK
        digests.add(store.digest())
    later = filled()
    later.apply(501, [])
    digests.add(later.digest())
    assert len(digests) == 7
    assert all(len(digest) == 16 for digest in digests)


def test_digest_is_independent_of_the_hash_seed() -> None:
    # PYTHONHASHSEED changes the order of sets and the layout of dicts keyed by bytes.
    code = (
        "import importlib.util as u\n"
        f"s = u.spec_from_file_location('t', {str(Path(__file__))!r})\n"
        "m = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "a = m.filled(); m.change_everything(a); print(a.digest().hex())"
    )
    store = filled()
    change_everything(store)
    for seed in ("0", "1", "4711"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            text=True,
        )
        assert run.stdout.strip() == store.digest().hex()
