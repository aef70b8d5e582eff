"""Guarantee: a scan merges all groups' pages in bounded memory, asks for no more than it needs, and ends clean."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from itertools import pairwise
from typing import Any, cast

import pytest

from raftkv.client.arguments import key_range
from raftkv.client.engine import Engine
from raftkv.client.scan import Ask, Merge, Scan
from raftkv.client.types import Record
from raftkv.clock import SystemClock
from raftkv.commands import ranges
from raftkv.commands.records import Put
from raftkv.errors import Unavailable
from raftkv.limits import SCAN_PAGE_BYTES
from raftkv.v1 import kv_pb2
from shards.slots import slot_of
from tests.store_helpers import SLOTS, make

GROUPS = 3
KEYS = sorted(b"key%04d" % number for number in range(2000))


class Groups:
    """Stands for an engine: groups in memory, whose pages are small and come after a while."""

    def __init__(self, value: bytes = b"v" * 100, page_bytes: int = 5_000) -> None:
        self.of = tuple(slot % GROUPS for slot in range(SLOTS))
        self.stores = [make(*(slot for slot in range(SLOTS) if self.of[slot] == group)) for group in range(GROUPS)]
        for key in KEYS:
            slot = slot_of(key, SLOTS)
            self.stores[self.of[slot]].apply(1, [Put(slot, key, value)])
        self.asked: list[kv_pb2.ScanRequest] = []
        self.busy: Counter[int] = Counter()
        self.most_busy = 0
        self.fails: Callable[[int], bool] = lambda _: False
        self.cancelled = 0
        self._page_bytes = page_bytes

    async def slots(self, timeout: float) -> int:
        return SLOTS

    def owners(self) -> tuple[int, ...]:
        return self.of

    async def page(self, request: kv_pb2.ScanRequest, timeout: float) -> kv_pb2.ScanResponse:
        group = self.of[request.slot]
        self.asked.append(request)
        number = len(self.asked)
        self.busy[group] += 1
        self.most_busy = max(self.most_busy, self.busy[group])
        try:
            await asyncio.sleep(0)
            if self.fails(number):
                raise Unavailable("nobody leads")
            small = kv_pb2.ScanRequest()
            small.CopyFrom(request)
            small.limit_bytes = min(request.limit_bytes, self._page_bytes)
            op = ranges.Scan.from_request(small, SLOTS)
            page = kv_pb2.ScanResponse()
            op.respond(self.stores[group].scan(op), page)
            return page
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.busy[group] -= 1


def scan(groups: Groups, prefix: str | None = None, **asked: Any) -> AsyncGenerator[list[Record], None]:
    keys = key_range(prefix, asked.pop("start", None), asked.pop("end", None))
    return Scan(cast(Engine, groups), SystemClock(), keys, 0, 5.0, **asked).batches()


async def keys_of(batches: AsyncGenerator[list[Record], None]) -> list[bytes]:
    return [record.key async for batch in batches for record in batch]


@pytest.mark.parametrize("reverse", [False, True])
def test_all_groups_are_merged_in_order(reverse: bool) -> None:
    groups = Groups()
    assert asyncio.run(keys_of(scan(groups, reverse=reverse))) == sorted(KEYS, reverse=reverse)
    assert len(groups.asked) > 3 * GROUPS
    assert groups.most_busy == 1
    assert groups.asked[0].limit_bytes == SCAN_PAGE_BYTES


def test_pages_come_while_a_batch_is_used_and_no_more_than_two_of_a_group_wait() -> None:
    groups = Groups()
    used: list[int] = []

    async def main() -> None:
        async with aclosing(scan(groups)) as batches:
            async for batch in batches:
                used.append(len(batch))
                for _ in range(5):
                    await asyncio.sleep(0)
                asked = len(groups.asked)
                assert not any(groups.busy.values()), "they came while the batch was used"
                for _ in range(5):
                    await asyncio.sleep(0)
                assert len(groups.asked) == asked, "nothing is asked for by itself"

    asyncio.run(main())
    assert sum(used) == len(KEYS)
    of_group = Counter(groups.of[one.slot] for one in groups.asked)
    assert max(of_group.values()) - min(of_group.values()) <= 2


def test_a_limit_asks_for_no_more() -> None:
    groups = Groups()
    assert asyncio.run(keys_of(scan(groups, limit=5, start=KEYS[7]))) == KEYS[7:12]
    assert [one.limit for one in groups.asked] == [5] * GROUPS


def test_a_prefix_with_a_hash_tag_is_in_one_slot() -> None:
    groups = Groups()
    assert asyncio.run(keys_of(scan(groups, "{q}job:"))) == []
    (only,) = groups.asked
    assert int.from_bytes(only.slots, "little") == 1 << slot_of(b"q", SLOTS)
    assert (only.start, only.end) == (b"{q}job:", b"{q}job;")


def test_the_first_error_ends_a_scan_and_all_that_it_has_under_way() -> None:
    groups = Groups()
    groups.fails = lambda asked: asked == 4

    async def main() -> int:
        with pytest.raises(Unavailable):
            await keys_of(scan(groups))
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1
    assert not any(groups.busy.values())


def test_a_scan_that_is_given_up_leaves_nothing_behind() -> None:
    groups = Groups()

    async def main() -> int:
        async with aclosing(scan(groups)) as batches:
            async for _ in batches:
                break
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1
    assert not any(groups.busy.values())


def test_many_groups_have_smaller_pages() -> None:
    groups = Groups()
    groups.of = tuple(range(SLOTS))
    groups.stores = [groups.stores[slot % GROUPS] for slot in range(SLOTS)]
    assert asyncio.run(keys_of(scan(groups, limit=3))) == KEYS[:3]
    assert {one.limit_bytes for one in groups.asked} == {16 * 1024}


def test_slots_that_a_page_lacks_are_asked_for_from_where_they_were() -> None:
    merge = Merge(0b1111, b"", b"z", reverse=False)
    owners = [1, 1, 2, 2]
    first, second = merge.asks(owners * 2)
    assert [first, second] == [Ask(1, 0b0011, b"", b"z"), Ask(2, 0b1100, b"", b"z")]
    assert merge.asks(owners * 2) == [], "one page of a group at a time"
    merge.take(first, 0b0001, b"c\0", [Record(b"a", b"", 1), Record(b"c", b"", 2)])
    assert merge.ready() == [], "slot 1 may have something before"
    (lag,) = merge.asks([1, 2, 2, 2] * 2)
    assert lag == Ask(1, 0b0001, b"c\0", b"z")
    merge.take(second, 0b1100, None, [Record(b"b", b"", 3), Record(b"x", b"", 4)])
    (lag,) = merge.asks([1, 2, 2, 2] * 2)
    assert lag == Ask(2, 0b0010, b"", b"z")
    merge.take(lag, 0b0010, None, [Record(b"bb", b"", 5)])
    ready = [record.key for record in merge.ready()]
    assert ready == [b"a", b"b", b"bb", b"c"]
    assert all(one < other for one, other in pairwise(ready))


def test_slots_that_were_behind_are_read_up_to_where_the_others_of_their_group_are() -> None:
    merge = Merge(0b11, b"", b"z", reverse=False)
    (ask,) = merge.asks([1] * 8)
    merge.take(ask, 0b01, b"m", [Record(b"a", b"", 1)])
    (ask,) = merge.asks([1] * 8)
    assert ask == Ask(1, 0b10, b"", b"m")
    merge.take(ask, 0b10, None, [Record(b"b", b"", 2)])
    assert [record.key for record in merge.ready()] == [b"a", b"b"]
    assert merge.asks([1] * 8) == [Ask(1, 0b11, b"m", b"z")]


def test_nothing_is_asked_for_in_an_empty_range() -> None:
    assert Merge(0b11, b"b", b"b", reverse=False).asks([1] * 8) == []
    assert Merge(0b11, b"c", b"b", reverse=True).asks([1] * 8) == []
    groups = Groups()
    assert asyncio.run(keys_of(scan(groups, start="b", end="a"))) == []
