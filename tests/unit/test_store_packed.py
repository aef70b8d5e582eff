"""Records in memory: nothing is lost in packing, and the garbage collector has nothing to look through."""

from __future__ import annotations

import gc
import struct

import msgpack
import pytest

from raftkv.commands.bounds import MAX_COUNT, MAX_EXPIRES
from raftkv.commands.group import Genesis
from raftkv.commands.records import Put
from raftkv.errors import StorageError
from raftkv.store.packed import VALUE_AT, fields, head, packed, value_bytes
from raftkv.store.records import Store
from raftkv.store.snapshot import FORMAT


@pytest.mark.parametrize("value", [b"", b"v", b"\0" * 20])
@pytest.mark.parametrize(("version", "expires"), [(1, 0), (MAX_COUNT, MAX_EXPIRES)])
def test_a_record_is_what_was_packed(value: bytes, version: int, expires: int) -> None:
    record = packed(value, version, expires)
    assert fields(record) == (value, version, expires)
    assert head(record) == (version, expires)
    assert value_bytes(record) == len(value) == len(record[VALUE_AT:])


def test_a_number_that_is_too_large_is_no_record() -> None:
    with pytest.raises(struct.error):
        packed(b"v", 2**63, 0)


@pytest.mark.parametrize("record", [b"", packed(b"", 1, 0)[:-1], "text", 7])
def test_a_snapshot_with_something_else_for_a_record_is_refused(record: object) -> None:
    items = [[FORMAT, 1, True], [1, 0, 1, 9, b"", 0, 0], [2, 0, b"k", record], [4, 1, 1, 0, 0]]
    with pytest.raises(StorageError, match="not a snapshot"):
        Store().begin_restore().feed(b"".join(msgpack.packb(item) for item in items))


def test_the_garbage_collector_does_not_track_records() -> None:
    """Else a collection would take as long as there are records, also for the copies that a snapshot leads to."""
    store = Store()
    store.apply(1, [Genesis((0,))])
    store.apply(2, [Put(0, b"%d" % number, b"v") for number in range(100)])
    snapshot = store.snapshot()
    before = store._slots[0].records
    store.apply(3, [Put(0, b"new", b"v", ttl=1000)])
    after = store._slots[0].records
    assert before is not after
    assert not any(gc.is_tracked(found) for found in (before, after, after[b"new"]))
    chunks = list(snapshot.chunks())
    restore = store.begin_restore()
    for chunk in chunks:
        restore.feed(chunk)
    restore.finish()
    assert len(store._slots[0].records) == 100
    assert not gc.is_tracked(store._slots[0].records)
