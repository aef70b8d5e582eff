"""Guarantee: a page of a scan has what its group serves of a range, in order and bounded, and tells how far it goes."""

from __future__ import annotations

from itertools import count, pairwise
from typing import Any

import pytest

from raftkv import limits
from raftkv.commands.base import Command
from raftkv.commands.group import Tick
from raftkv.commands.moving import Activate, Freeze, Release, Track
from raftkv.commands.ranges import Content, Scan
from raftkv.commands.records import Delete, Put
from raftkv.commands.results import ScanPage
from raftkv.errors import Code
from raftkv.store.records import Store
from shards.slots import slot_of
from tests.store_helpers import GROUP, SLOTS, begin, bits, copy, final, in_order, make, one, scan_of, scanned


def tagged(slot: int, name: str) -> bytes:
    """A key of that slot."""
    tag = next(tag for tag in map(str, count()) if slot_of(tag.encode(), SLOTS) == slot)
    return f"{name}{{{tag}}}".encode()


def put(key: bytes, value: bytes = b"v", ttl: int = 0) -> Command:
    return Put(slot_of(key, SLOTS), key, value, ttl=ttl)


def delete(key: bytes) -> Command:
    return Delete(slot_of(key, SLOTS), key)


def keys(page: ScanPage) -> list[bytes]:
    return [row[0] for row in page.records]


def pages(store: Store, **asked: Any) -> list[ScanPage]:
    """All pages of a scan."""
    found = [scanned(store, scan_of(0, **asked))]
    while (following := found[-1].next) is not None:
        asked = {**asked, ("end" if asked.get("reverse") else "start"): following}
        found.append(scanned(store, scan_of(0, **asked)))
    return found


NAMES = [tagged(slot, f"{number:03}") for number in range(50) for slot in (number % 3,)]
ALL = bits(0, 1, 2)


def filled(size: int = 50) -> Store:
    store = make(0, 1, 2)
    store.apply(1_000, [put(key, b"x" * size) for key in reversed(NAMES)])
    return store


def test_records_of_several_slots_come_in_the_order_of_their_keys() -> None:
    found = pages(filled(), slots=ALL, limit_bytes=500)
    assert [key for page in found for key in keys(page)] == NAMES
    assert len(found) > 7
    assert {page.slots for page in found} == {ALL}
    for page, following in pairwise(found):
        assert page.next == keys(page)[-1] + b"\0"
        assert 0 < len(page.records) <= 7
        assert keys(following)[0] >= (page.next or b"")


def test_in_reverse_they_come_from_the_last_to_the_first() -> None:
    found = pages(filled(), slots=ALL, limit_bytes=500, reverse=True)
    assert [key for page in found for key in keys(page)] == NAMES[::-1]
    assert all(page.next in (None, keys(page)[-1]) for page in found)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_range_begins_with_its_start_and_stops_before_its_end(reverse: bool) -> None:
    store = filled()
    (page,) = pages(store, slots=ALL, start=NAMES[3], end=NAMES[7], reverse=reverse)
    assert sorted(keys(page)) == NAMES[3:7]
    (page,) = pages(store, slots=ALL, start=NAMES[3], end=NAMES[3], reverse=reverse)
    assert (page.records, page.next) == ((), None)
    (page,) = pages(store, slots=ALL, start=NAMES[7], end=NAMES[3], reverse=reverse)
    assert (page.records, page.next) == ((), None)


def test_only_wanted_slots_that_are_served_are_in_a_page() -> None:
    store = filled()
    (page,) = pages(store, slots=bits(0, 2, 7))
    assert page.slots == bits(0, 2)
    assert keys(page) == [key for key in NAMES if slot_of(key, SLOTS) in (0, 2)]
    one(store, Track(GROUP, 7, (2,)))
    assert scanned(store, scan_of(0, slots=ALL)).slots == ALL
    one(store, Freeze(GROUP, 7))
    (page,) = pages(store, slots=ALL)
    assert page.slots == bits(0, 1)
    assert keys(page) == [key for key in NAMES if slot_of(key, SLOTS) < 2]
    assert store.scan(scan_of(2, slots=ALL)).code == Code.SLOT_MOVING
    assert store.scan(scan_of(7, slots=ALL)).code == Code.MOVED


def test_a_page_looks_at_a_bounded_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SCAN_KEYS", 10)
    store = filled()
    for reverse in (False, True):
        found = pages(store, slots=bits(1), reverse=reverse)
        assert len(found) == 5
        assert sorted(key for page in found for key in keys(page)) == [k for k in NAMES if slot_of(k, SLOTS) == 1]
    monkeypatch.setattr(limits, "MAX_SCAN_KEYS", 1)
    found = pages(store, slots=bits(1))
    assert [key for page in found for key in keys(page)] == [key for key in NAMES if slot_of(key, SLOTS) == 1]


def test_limits_of_records_and_bytes() -> None:
    store = filled(size=1000)
    page = scanned(store, scan_of(0, slots=ALL, limit=3))
    assert (keys(page), page.next) == (NAMES[:3], NAMES[2] + b"\0")
    page = scanned(store, scan_of(0, slots=ALL, limit=3, reverse=True))
    assert (keys(page), page.next) == (NAMES[:-4:-1], NAMES[-3])
    page = scanned(store, scan_of(0, slots=ALL, limit_bytes=1))
    assert (keys(page), page.next) == (NAMES[:1], NAMES[0] + b"\0"), "one record, however small the page"
    assert len(scanned(store, scan_of(0, slots=ALL)).records) == 50


def test_keys_alone_and_their_number() -> None:
    store = filled(size=1000)
    (page,) = pages(store, slots=ALL, content=Content.KEYS, limit_bytes=5000)
    assert [row[:2] for row in page.records] == [(key, b"") for key in NAMES]
    assert all(store.read(slot_of(key, SLOTS), key).version == version for key, _, version, _ in page.records)
    (page,) = pages(store, slots=bits(0), content=Content.COUNT)
    assert (page.records, page.count, page.slots) == ((), 17, bits(0))


def test_what_has_expired_is_in_no_page() -> None:
    store = make(0, 1, 2)
    a, b, c = (tagged(0, name) for name in "abc")
    store.apply(2_000, [put(a, ttl=5), put(c)])
    (page,) = pages(store)
    assert page.records == ((a, b"v", 1, 5), (c, b"v", 2, -1))
    store.apply(2_005, [put(b), delete(c)])
    assert pages(store)[0].records == ((b, b"v", 3, -1),)
    # A record that is due is not there, also before an entry has removed it.
    store.apply(3_000, [put(a, ttl=5)])
    store.time += 5
    assert keys(pages(store)[0]) == [b]
    assert pages(store, content=Content.COUNT)[0].count == 1


def test_a_slot_that_comes_back_while_its_old_memory_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_FREED_PER_ENTRY", 1)
    source, target = filled(), make(9, now=5_000_000)
    mine = [key for key in NAMES if slot_of(key, SLOTS) == 0]

    def move(there: Store, here: Store, number: int) -> None:
        begin(there, here, (0,), number)
        copy(there, here, move=number)
        one(there, Freeze(GROUP, number))
        copy(there, here, move=number)
        one(here, final(there, number))
        one(here, Activate(GROUP, number))
        one(there, Release(GROUP, number))

    move(source, target, 7)
    assert keys(pages(target)[0]) == mine
    assert source.scan(scan_of(0)).code == Code.MOVED
    one(target, delete(mine[3]))
    move(target, source, 8)
    assert len(source.moves.trash) == 1
    left = [key for key in mine if key != mine[3]]
    while source.moves.trash:
        assert in_order(source)
        for reverse in (False, True):
            found = pages(source, reverse=reverse, limit_bytes=200)
            assert sorted(key for page in found for key in keys(page)) == left
        one(source, Tick())
    assert in_order(source)


def test_a_scan_of_another_number_of_slots_or_with_too_long_bounds_is_refused() -> None:
    for wrong in (b"", b"\xff" * 31, b"\xff" * 33, b"\xff" * 4096):
        refusal = Scan(0, b"", b"", wrong).refusal()
        assert refusal is not None
        assert refusal.code == Code.INVALID_ARGUMENT
    long = b"k" * (limits.MAX_KEY_BYTES + 2)
    assert [op.refusal() is not None for op in (scan_of(0, long), scan_of(0, end=long), scan_of(0, long[1:]))] == [
        True,
        True,
        False,
    ]
