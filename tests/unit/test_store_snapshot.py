"""Guarantees: a snapshot is the state of one moment whatever is written meanwhile; a restore brings back all of it."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import msgpack
import pytest

from raftkv import limits
from raftkv.errors import Code, StorageError
from raftkv.store import Kind, Op, SlotState, Store
from raftkv.store.snapshot import StoreRestore

ROOT = Path(__file__).parents[2]
SLOTS = 8


def filled() -> Store:
    store = Store()
    store.apply(5, [Op(Kind.GENESIS, 0, b"", msgpack.packb(list(range(SLOTS))))])
    for i in range(400):
        ttl = 1000 + i if i % 3 == 0 else 0
        who = (i % 5 + 1).to_bytes(16, "big")
        op = Op(
            Kind.PUT, i % SLOTS, b"key%d" % (i % 300), b"x" * i, ttl=ttl, client=who, seq=i + 1, first=max(1, i - 60)
        )
        store.apply(10 + i, [op])
    store.apply(500, [Op(Kind.DELETE, 3, b"key3"), Op(Kind.PUT, 0, b"\x00\xff", b"")])
    return store


def change_everything(store: Store) -> None:
    for slot in range(SLOTS):
        writes = [Op(Kind.PUT, slot, b"key%d" % i, b"new", ttl=5) for i in range(0, 300, 7)]
        removals = [Op(Kind.DELETE, slot, b"key%d" % i) for i in range(0, 300, 3)]
        who = Op(Kind.PUT, slot, b"s", b"", client=(3).to_bytes(16, "big"), seq=9999, first=9999)
        store.apply(store.time + 10, [*writes, *removals, who])


def restored(chunks: Iterable[bytes]) -> Store:
    store = Store()
    restore = store.begin_restore()
    for chunk in chunks:
        restore.feed(chunk)
    restore.finish()
    return store


def test_everything_survives() -> None:
    store = filled()
    # The state of a slot is part of it, and so are the floors of sessions that have gone.
    store.apply(500, [Op(Kind.TRACK, 0, b"", msgpack.packb([1, [5]])), Op(Kind.FREEZE, 0, b"", msgpack.packb([1]))])
    store._slots[6].floor = b"f" * 16
    other = restored(store.snapshot().chunks())
    assert other.digest() == store.digest()
    assert (other.time, other.genesis, other.stats()) == (store.time, True, store.stats())
    assert other.next_expiry() == store.next_expiry()
    assert other.slot_state(5) is SlotState.FROZEN
    for slot in range(SLOTS):
        assert other.scan(slot, b"", 0) == store.scan(slot, b"", 0)
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
    store.apply(1, [Op(Kind.GENESIS, 0, b"", msgpack.packb([0, 1]))])
    store.apply(1, [Op(Kind.PUT, i % 2, b"%d" % i, b"x" * 1000) for i in range(2000)])
    sizes = [len(chunk) for chunk in store.snapshot().chunks()]
    assert len(sizes) >= 7
    assert max(sizes) < limits.SNAPSHOT_CHUNK_BYTES * 1.2
    assert min(sizes[:-1]) >= limits.SNAPSHOT_CHUNK_BYTES


def test_what_is_no_whole_snapshot_is_refused_and_changes_nothing() -> None:
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
        packed[0] + msgpack.packb([1, 0, 9, 0, b""]) + packed[-1],
        packed[0] + msgpack.packb([1, "0", 1, 0, b""]) + packed[-1],
        packed[0] + msgpack.packb([1, 0, 1, 0, b""]) + msgpack.packb([2, 0, b"k", b"v", 1]),
        packed[0] + msgpack.packb([1, 0, 1, 0, b""]) + msgpack.packb([3, 0, [b"c", 1]]),
        packed[0] + msgpack.packb([1, 0, 1, 0, b""]) + msgpack.packb([3, 0, [b"c", 1, 1, 1, 5]]),
    ):
        restore = store.begin_restore()
        with pytest.raises(StorageError):
            feed_and_finish(restore, bad)
        assert store.digest() == before


def items_of(chunk: bytes) -> list[object]:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(chunk)
    return list(unpacker)


def feed_and_finish(restore: StoreRestore, chunk: bytes) -> None:
    restore.feed(chunk)
    restore.finish()


def test_digest_tells_states_apart() -> None:
    digests = {filled().digest()}
    for change in (
        Op(Kind.PUT, 0, b"key0", b"other"),
        Op(Kind.DELETE, 0, b"key0"),
        Op(Kind.PUT, 1, b"key1", b"x", client=b"c" * 16, seq=1),
        Op(Kind.PUT, 1, b"key1", b"x", client=b"c" * 16, seq=2),
        Op(Kind.PUT, 1, b"key1", b"x", ttl=5),
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
