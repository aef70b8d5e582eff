"""Guarantee: the meta group keeps the first shard map that it was given, and nothing malformed harms it."""

from collections.abc import Iterable

import msgpack
import pytest

from raftkv.commands.base import Command
from raftkv.commands.group import Check, Genesis, Tick
from raftkv.commands.meta import FormCluster
from raftkv.commands.records import Put
from raftkv.errors import Code, StorageError
from raftkv.store.meta import MetaStore
from shards import Node, ShardMap, initial_map


def make_map(name: str, groups: int = 2) -> ShardMap:
    return initial_map(name, [Node(i, f"h:{i}", f"p:{i}", "life") for i in (1, 2, 3)], groups, 256, 3)


def init(shard_map: ShardMap) -> Command:
    return FormCluster(msgpack.packb(shard_map.to_wire()))


def restored(chunks: Iterable[bytes]) -> MetaStore:
    store = MetaStore()
    restore = store.begin_restore()
    for chunk in chunks:
        restore.feed(chunk)
    assert store.map is None
    restore.finish()
    return store


def test_only_the_first_map_counts() -> None:
    store = MetaStore()
    assert store.map is None
    first = make_map("one")
    results = store.apply(7, [init(first), init(make_map("two"))])
    assert [result.code for result in results] == [Code.OK, Code.OK]
    assert store.map == first
    store.apply(9, [init(make_map("three"))])
    assert store.map == first
    assert store.time == 9


def test_malformed_commands_are_refused() -> None:
    store = MetaStore()
    good = make_map("one").to_wire()
    commands: list[Command] = [
        FormCluster(b""),
        FormCluster(b"\xc1"),
        FormCluster(msgpack.packb({})),
        FormCluster(msgpack.packb({**good, "epoch": 0})),
        Put(0, b"k", b"v"),
        Genesis((1,)),
        Check(0, 1),
    ]
    results = store.apply(3, commands)
    assert [result.code for result in results] == [Code.INVALID_ARGUMENT] * len(commands)
    assert store.map is None
    assert store.apply(3, [Tick()])[0].code == Code.OK


def test_snapshot_and_restore() -> None:
    store = MetaStore()
    store.apply(5, [])
    empty = store.snapshot()
    store.apply(7, [init(make_map("one"))])
    other = restored(store.snapshot().chunks())
    assert (other.map, other.time, other.digest()) == (store.map, 7, store.digest())
    older = restored(empty.chunks())
    assert (older.map, older.time) == (None, 5)
    assert older.digest() != store.digest()


def test_bad_snapshots_are_refused() -> None:
    store = MetaStore()
    store.apply(7, [init(make_map("one"))])
    before = store.digest()
    (chunk,) = store.snapshot().chunks()
    bad_ones = (b"", chunk[:-1], chunk + b"x", msgpack.packb(["x", 1, None]), msgpack.packb(["raftkv meta 1", 1, {}]))
    for bad in bad_ones:
        restore = store.begin_restore()
        restore.feed(bad)
        with pytest.raises(StorageError):
            restore.finish()
        assert store.digest() == before
