"""Guarantee: what is no entry is refused whole, and no entry that is one can stop a replica: apply never raises, and
refusals do nothing."""

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import convert

from raftkv.commands.base import Command
from raftkv.commands.group import Genesis
from raftkv.commands.meta import ChangeCluster, FormCluster
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
from raftkv.commands.registry import COMMANDS, LOGGED, decode_entry
from raftkv.errors import Code
from raftkv.store.meta import MetaStore
from raftkv.store.records import Store
from tests.store_helpers import restored, summary_of

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=3), inner, max_size=12),
    max_leaves=20,
)
numbers = st.sampled_from([0, 1, 2, 3, -1, 2**62, 2**63, True, 1.0, None, b"", "x"])
# Blobs, cursors and summaries of any and of nearly right parts.
packed = (
    st.binary(max_size=20)
    | values.map(msgpack.packb)
    | st.tuples(
        st.sampled_from([b"", b"c"]) | numbers,
        st.lists(
            st.tuples(
                st.sampled_from([2, 3]) | numbers,
                st.lists(st.sampled_from([b"k", b"v", 1, 0, 2**61, 2**62]), max_size=8),
                st.lists(st.sampled_from([b"k", 1]), max_size=2),
                st.lists(
                    st.lists(st.sampled_from([b"c" * 16, 1, 2, -5, -(2**61), 2**61, 2**63]), max_size=8), max_size=2
                ),
            ),
            max_size=2,
        ),
    ).map(msgpack.packb)
    | st.tuples(
        numbers,
        st.lists(st.tuples(st.sampled_from([2, 3]), numbers, st.sampled_from([b"", b"f" * 16, b"x"])), max_size=2),
        numbers,
        st.sampled_from([b"d" * 16, b"d"]),
    ).map(msgpack.packb)
)
slots = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3)
parts = numbers | packed | slots | st.sampled_from([b"k", b"v", b"c" * 16, b"d" * 16, "cancel", "plan", "want"])
rows = st.tuples(st.sampled_from([*COMMANDS, 99]), st.lists(parts, max_size=8)).map(lambda row: [row[0], *row[1]])
ids = st.sampled_from([1, 2, 3])
keys, names = st.sampled_from([b"k", b"l"]), st.sampled_from([b"", b"c" * 16, b"d" * 16])


def _well_formed(row: list[Any]) -> list[Command]:
    try:
        return [convert(row, LOGGED)]
    except ValueError:
        return []


def _flat(lists: list[list[Command]]) -> list[Command]:
    return [command for some in lists for command in some]


# Steps of moves and writes that are right, and whatever else happens to be.
commands = (
    rows.flatmap(lambda row: st.just(_well_formed(row)))
    | st.builds(lambda *fields: [Track(1, *fields)], ids, slots.map(tuple))
    | st.builds(lambda *fields: [ImportBegin(1, *fields)], ids, slots.map(tuple))
    | st.builds(lambda *fields: [ImportChunk(1, *fields)], ids, ids, st.sampled_from([b"", b"c"]) | packed, packed)
    | st.builds(lambda *fields: [ImportFinal(1, *fields)], ids, packed)
    | st.builds(lambda kind, move: [kind(1, move)], st.sampled_from([Activate, Freeze, Release]), ids)
    | st.builds(lambda kind, *fields: [kind(1, *fields)], st.sampled_from([ImportDrop, Untrack]), ids, slots.map(tuple))
    | st.builds(lambda *fields: [Put(*fields[:3], client=fields[3], seq=fields[4])], ids, keys, keys, names, ids)
)
entries = st.tuples(st.integers(0, 2**63), st.lists(commands, max_size=8).map(_flat))


@settings(derandomize=True, max_examples=500, deadline=None)
@given(values | st.tuples(values | numbers, st.lists(rows | values, max_size=4)), st.binary(max_size=3))
def test_what_is_no_entry_is_refused_whole(value: object, junk: bytes) -> None:
    try:
        time, found = decode_entry(msgpack.packb(value) + junk)
    except ValueError:
        return
    assert type(time) is int
    assert all(isinstance(command, Command) and not command.reads for command in found)


@pytest.mark.parametrize("row", [[0, 1, b"k"], [4, 1, b""], [22, 0], [40, 1, 1], [50, 1], [99], [], [1, 0, b"", b"v"]])
def test_reads_and_what_is_unknown_are_no_commands_of_the_log(row: list[object]) -> None:
    with pytest.raises(ValueError):
        decode_entry(msgpack.packb([1, [row]]))


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(entries, max_size=6))
def test_apply_is_total(history: list[tuple[int, list[Command]]]) -> None:
    store, meta = Store(), MetaStore()
    store.apply(1, [Genesis((0, 1))])
    for now, batch in history:
        results = store.apply(now, batch)
        assert len(results) == len(batch)
        assert len(meta.apply(now, batch)) == len(batch)
        assert all(isinstance(result.code, int) for result in results)
        # Whatever got in can be stored and read back.
        assert restored(store.snapshot().chunks()).digest() == store.digest()


@settings(derandomize=True, max_examples=300, deadline=None)
@given(entries, packed, ids, st.integers(-(2**63), 2**63))
def test_reads_of_moves_are_total(entry: tuple[int, list[Command]], cursor: bytes, move: int, limit: int) -> None:
    store = Store()
    store.apply(1, [Genesis((0, 1))])
    store.apply(2, [Put(0, b"k", b"v", client=b"c" * 16, seq=1), Track(1, 2, (0, 1))])
    store.apply(*entry)
    before = store.digest()
    codes = (Code.OK, Code.INVALID_ARGUMENT, Code.CONDITION_FAILED)
    for result in (store.move_state(move), store.export(move, cursor, limit), summary_of(store, move)):
        assert result.code in codes
    assert store.export(2, cursor, 10).code in codes
    assert store.digest() == before


@settings(derandomize=True, max_examples=300, deadline=None)
@given(packed)
def test_any_page_and_any_summary_are_survived(data: bytes) -> None:
    store = Store()
    store.apply(1, [Genesis((0, 1))])
    store.apply(2, [ImportBegin(1, 1, (2, 3))])
    before = store.digest()
    for command in (ImportChunk(1, 1, 1, b"", data), ImportFinal(1, 1, data)):
        (result,) = store.apply(2, [command])
        assert result.code != Code.INVALID_ARGUMENT or store.digest() == before
        assert restored(store.snapshot().chunks()).digest() == store.digest()
        before = store.digest()


@settings(derandomize=True, max_examples=300, deadline=None)
@given(commands)
def test_refused_commands_change_nothing(batch: list[Command]) -> None:
    store = Store()
    store.apply(1, [Genesis((0, 1))])
    for command in batch:
        before = store.digest()
        (result,) = store.apply(1, [command])
        if result.code not in (Code.OK, Code.CONDITION_FAILED):
            assert store.digest() == before


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_map_and_any_change_are_survived(data: bytes) -> None:
    meta = MetaStore()
    assert meta.apply(1, [FormCluster(data)])[0].code in (Code.OK, Code.INVALID_ARGUMENT)
    (result,) = meta.apply(1, [ChangeCluster(0, b"t" * 16, "plan", data)])
    assert result.code in (Code.CONDITION_FAILED, Code.INVALID_ARGUMENT)
