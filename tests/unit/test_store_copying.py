"""Guarantees: pages bring all of a slot and what changes meanwhile; what is malformed changes nothing."""

from __future__ import annotations

import msgpack
import pytest

from raftkv import limits
from raftkv.commands.base import Command
from raftkv.commands.bounds import MAX_EXPIRES
from raftkv.commands.group import Tick
from raftkv.commands.moving import (
    Activate,
    Copy,
    Freeze,
    ImportBegin,
    ImportChunk,
    ImportDrop,
    ImportFinal,
    MoveState,
    Track,
    Untrack,
)
from raftkv.commands.records import Delete, Put
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.store.digest import content_digest
from raftkv.store.history import Change
from raftkv.store.packed import packed
from tests.store_helpers import (
    DONE,
    GROUP,
    begin,
    copy,
    events_in,
    exported,
    final,
    make,
    one,
    page,
    pair,
    restored,
    state,
    summary_of,
)


def test_changes_are_sent_in_the_order_of_their_last_change() -> None:
    source, target = make(0), make(9)
    source.apply(1, [Put(0, b"%02d" % i, b"old") for i in range(50)])
    begin(source, target, (0,))
    copy(source, target)
    assert state(target).records == 50
    source.apply(1, [Put(0, b"%02d" % i, b"new") for i in (40, 5, 30)])
    source.apply(1, [Delete(0, b"05"), Put(0, b"40", b"newest"), Put(0, b"xx", b"")])
    assert list(source._slots[0].dirty or ()) == [b"30", b"05", b"40", b"xx"]
    chunk, done = page(source, target, limit=1)
    assert not done
    assert msgpack.unpackb(chunk.chunk)[1] == [[0, [b"30", b"new", 53, 0], [], []]]
    one(target, chunk)
    # What changed again has moved to the end.
    one(source, Delete(0, b"40"))
    assert copy(source, target, limit=1) == 3 + 7, "each event is a page too"
    assert target._slots[0].records == source._slots[0].records
    assert page(source, target)[1]


def test_keys_that_come_and_go_during_a_walk() -> None:
    source, target = make(0), make(9)
    source.apply(1, [Put(0, b"%02d" % i, b"old") for i in range(0, 50, 2)])
    begin(source, target, (0,))
    for i in range(0, 50, 3):
        chunk, _ = page(source, target, limit=60)
        one(target, chunk)
        source.apply(1, [Put(0, b"%02d" % i, b"new"), Delete(0, b"%02d" % (49 - i))])
    copy(source, target)
    assert target._slots[0].records == source._slots[0].records


def test_a_page_costs_what_it_holds_not_what_the_slot_holds() -> None:
    source, target = make(0), make(9)
    source.apply(1, [Put(0, b"%05d" % i, b"v" * 10) for i in range(20_000)])
    begin(source, target, (0,))
    chunk, _ = page(source, target, limit=5_000)
    one(target, chunk)
    walk = source._slots[0].walk
    # New keys make other reads sort again, but not the walk.
    one(source, Put(0, b"new", b""))
    found = exported(source, 7, state(target).cursor, 5_000)
    assert source._slots[0].walk is walk
    assert len(found.chunk) < 7_000
    assert 19_000 < found.records < 20_000
    assert 0.9 < found.record_bytes / (15 * found.records) < 1.1
    assert not found.done


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
        one(source, Put(0, b"key0", b"again"))
        if state(target).seq == 20:
            break
    copy(source, target)
    result = behind.export(7, state(target).cursor, 0)
    assert result == Result(Code.CONDITION_FAILED, detail="this replica is behind the cursor")
    one(source, Freeze(GROUP, 7))
    copy(source, target)
    assert one(target, final(source)) == DONE


def test_what_a_replica_has_cached_does_not_mislead_it() -> None:
    source, target = make(0), make(9)
    source.apply(1, [Put(0, b"%02d" % i, b"old") for i in range(20)])
    begin(source, target, (0,))
    other = restored(source.snapshot().chunks())
    # This one lists the keys now, the other one begins the walk after new ones have come.
    assert source.export(7, b"", 100).code == Code.OK
    for each in (source, other):
        each.apply(1, [Put(0, b"%02dx" % i, b"new") for i in range(20)])
    chunk, _ = page(other, target, limit=100)
    one(target, chunk)
    copy(source, target)
    assert target._slots[0].records == source._slots[0].records
    # This one lists only the latest changes, and is asked for earlier ones.
    before = restored(target.snapshot().chunks())
    for i in range(10):
        one(source, Put(0, b"%02d" % i, b"newer"))
    copy(source, target)
    source.apply(1, [Delete(0, b"00"), Delete(0, b"01")])
    page(source, target, limit=1)
    for each in (before, target):
        copy(source, each)
        assert each._slots[0].records == source._slots[0].records


def test_expired_records_are_copied_and_removed_where_they_are_served() -> None:
    source, target = make(0), make(9)
    count = limits.MAX_EXPIRED_PER_ENTRY
    source.apply(2_000, [Put(0, b"%d" % i, b"v", ttl=5) for i in range(count + 10)])
    begin(source, target, (0,))
    source.apply(2_005, [Freeze(GROUP, 7)])
    assert source.stats().records == count + 10
    copy(source, target, limit=100_000)
    assert state(target).records == count + 10
    assert one(target, final(source)) == DONE
    assert one(target, Activate(GROUP, 7)) == DONE
    assert target.read(0, b"1").version == 0
    one(target, Tick())
    assert target.slot_stats()[0][1] == 0
    assert sum(event.change is Change.EXPIRE for event in events_in(target, 0)) == count + 10


def test_reads_refuse_what_they_cannot_answer() -> None:
    source, target = pair()
    assert source.export(7, b"", 0).code == Code.CONDITION_FAILED
    assert summary_of(source, 7).code == Code.CONDITION_FAILED
    begin(source, target)
    assert summary_of(source, 7).code == Code.CONDITION_FAILED
    assert target.export(7, b"", 0).code == Code.CONDITION_FAILED
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


def test_malformed_steps_change_nothing() -> None:
    source, target = pair()
    begin(source, target)
    good, _ = page(source, target)
    cursor = good.cursor
    start, parts, _ = msgpack.unpackb(good.chunk)

    def chunk(*part: object) -> Command:
        return ImportChunk(GROUP, 7, 1, cursor, msgpack.packb([b"", [part], []]))

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
        ImportChunk(GROUP, 7, 1, cursor, b"\xc1"),
        ImportChunk(GROUP, 7, 1, cursor, msgpack.packb(5)),
        ImportChunk(GROUP, 7, 1, cursor, msgpack.packb([b"", [], [0, b"k"]])),
        ImportChunk(GROUP, 7, 1, cursor, msgpack.packb([b"", [], [5, b"k", packed(b"", 1, 0)]])),
        ImportChunk(GROUP, 7, 1, cursor, msgpack.packb([b"", [], [0, b"k", b"short"]])),
        ImportChunk(GROUP, 7, 1, cursor, msgpack.packb([b"", [], [0, b"k", packed(b"", 1, -9)]])),
        ImportFinal(GROUP, 7, b""),
        ImportFinal(GROUP, 7, msgpack.packb([0, [[0, 0, b"", 0], [1, 0, b"", 1]], 0, b"0" * 16])),
        ImportFinal(GROUP, 7, msgpack.packb([0, [[0, 0, b"", 0]], 0, b"0" * 16])),
        ImportFinal(GROUP, 7, msgpack.packb([0, [[0, 0, b"", 0], [1, -1, b"", 0]], 0, b"0" * 16])),
        ImportFinal(GROUP, 7, msgpack.packb([0, [[0, 0, b"", 0], [1, 0, b"x", 0]], 0, b"0" * 16])),
        ImportFinal(GROUP, 7, msgpack.packb([2**62, [[0, 0, b"", 0], [1, 0, b"", 0]], 0, b"0" * 16])),
        ImportFinal(GROUP, 7, msgpack.packb([0, [[0, 0, b"", 0], [1, 0, b"", 0]], 0, b"short"])),
        ImportFinal(GROUP, 7, msgpack.packb([0, 5, 0, b"0" * 16])),
        *[kind(GROUP, 7, (1, 1)) for kind in (ImportBegin, ImportDrop, Track, Untrack)],
        MoveState(GROUP, 7),
        Copy(GROUP, 7, 2, 0, b"", 1),
    ):
        assert one(target, bad).code == Code.INVALID_ARGUMENT, bad
        assert target.digest() == before
    assert start == b""
    assert parts
    assert one(target, good) == Result(Code.OK, number=1)


@pytest.mark.parametrize("frozen", [0, MAX_EXPIRES])
def test_times_at_their_bounds_stay_within_64_bits(frozen: int) -> None:
    target = make(9, now=2**60)
    one(target, ImportBegin(GROUP, 7, (0,)))
    rows = [[b"c" * 16, 0, -MAX_EXPIRES, MAX_EXPIRES, 2**62, -(2**62) - 1]]
    one(
        target,
        ImportChunk(GROUP, 7, 1, b"", msgpack.packb([b"", [[0, [b"k", b"", 2**62, MAX_EXPIRES], [], rows]], []])),
    )
    records, digest = content_digest([target._slots[0]], [], [2**62], frozen)
    summary = msgpack.packb([frozen, [[0, 2**62, b"f" * 16, 2**62]], records, digest])
    assert one(target, ImportFinal(GROUP, 7, summary)) == DONE
    assert one(target, Activate(GROUP, 7)) == DONE
    assert one(target, Put(0, b"n", b"", ttl=limits.MAX_TTL * 1000)).code == Code.OK
    assert restored(target.snapshot().chunks()).digest() == target.digest()
