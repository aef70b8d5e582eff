"""Guarantee: no log entry that can be decoded can stop a replica: apply never raises, and refusals do nothing."""

from typing import Any

import msgpack
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raftkv.errors import Code
from raftkv.store import Kind, MetaStore, Op, Store
from tests.store_helpers import restored, step, summary_of

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**40), st.integers(0, 999_999_999))
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=3), inner, max_size=12),
    max_leaves=20,
)
# Commands that are nearly right reach further.
numbers = st.sampled_from([0, 1, 2, 3, -1, 2**63, True, 1.0, None, b"", "x"])
nearly = st.tuples(
    st.sampled_from([0, 1, 2, 3, 4, 10, 11, 20, True, 1.0, None, [], "1"]),
    numbers,
    st.sampled_from([b"k", b"", "k", None, 5]),
    st.sampled_from([b"v", b"\x91\x01", None, "v", 5, []]),
    numbers,
    st.sampled_from([None, b"v", "v", 5]),
    numbers,
    st.sampled_from([b"", b"c" * 16, b"d" * 16, b"short", "c" * 16, None]),
    numbers,
    numbers,
    numbers,
)
# Steps of moves: any arguments, nearly right ones, and blobs, cursors and summaries of any and of nearly right parts.
ids = st.sampled_from([1, 2, 3]) | numbers
slots = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3) | numbers
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
arguments = (
    values
    | st.tuples(ids)
    | st.tuples(ids, slots)
    | st.tuples(ids, packed)
    | st.tuples(ids, ids, st.sampled_from([b"", b"c"]) | packed, packed)
)
moving = st.tuples(st.sampled_from(range(30, 46)), numbers, st.just(b""), arguments.map(msgpack.packb))
commands = nearly | nearly.map(lambda fields: fields[:7]) | moving | values
entries = st.tuples(values | st.integers(0, 10**6), st.lists(commands, max_size=8) | values)


def decoded(value: object) -> Any:
    return msgpack.unpackb(msgpack.packb(value), strict_map_key=False)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(entries, max_size=6))
@example([(1, ["elevenchars"]), (1, "elevenchars"), (1, b"bytes"), (1, {"a": 1}), (1, None)])
def test_apply_is_total(history: list[tuple[object, object]]) -> None:
    store, meta = Store(), MetaStore()
    store.apply(1, [Op(Kind.GENESIS, 0, b"", msgpack.packb([0, 1]))])
    for now, batch in history:
        now, batch = decoded(now), decoded(batch)
        wanted = len(batch) if isinstance(batch, list | tuple) else 0
        results = store.apply(now, batch)
        assert len(results) == wanted
        assert len(meta.apply(now, batch)) == wanted
        assert all(isinstance(result.code, int) for result in results)
        # Whatever got in can be stored and read back.
        assert restored(store.snapshot().chunks()).digest() == store.digest()


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(moving, max_size=8), packed, ids, numbers)
def test_reads_of_moves_are_total(history: list[object], cursor: bytes, move: Any, limit: Any) -> None:
    store = Store()
    store.apply(1, [Op(Kind.GENESIS, 0, b"", msgpack.packb([0, 1]))])
    store.apply(2, [Op(Kind.PUT, 0, b"k", b"v", client=b"c" * 16, seq=1), step(Kind.TRACK, 2, [0, 1])])
    store.apply(2, decoded(history))
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
    store.apply(1, [Op(Kind.GENESIS, 0, b"", msgpack.packb([0, 1]))])
    store.apply(2, [step(Kind.IMPORT_BEGIN, 1, [2, 3])])
    before = store.digest()
    for command in (step(Kind.IMPORT_CHUNK, 1, 1, b"", data), step(Kind.IMPORT_FINAL, 1, data)):
        (result,) = store.apply(2, [command])
        assert result.code != Code.INVALID_ARGUMENT or store.digest() == before
        assert restored(store.snapshot().chunks()).digest() == store.digest()
        before = store.digest()


@settings(derandomize=True, max_examples=300, deadline=None)
@given(commands)
def test_refused_commands_change_nothing(command: object) -> None:
    store = Store()
    store.apply(1, [Op(Kind.GENESIS, 0, b"", msgpack.packb([0, 1]))])
    before = store.digest()
    (result,) = store.apply(1, [decoded(command)])
    if result.code not in (Code.OK, Code.CONDITION_FAILED):
        assert store.digest() == before


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_genesis_and_any_map_are_survived(data: bytes) -> None:
    store, meta = Store(), MetaStore()
    assert store.apply(1, [Op(Kind.GENESIS, 0, b"", data)])[0].code in (Code.OK, Code.INVALID_ARGUMENT)
    assert meta.apply(1, [Op(Kind.MAP_INIT, 0, b"", data)])[0].code in (Code.OK, Code.INVALID_ARGUMENT)
