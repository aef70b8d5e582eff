"""Scans over all groups: pages of several are read ahead and merged, bounded in memory, whatever slots move meanwhile.

A page tells which of the slots that it was asked for its group served, and how far it reaches. So it is noted for each
slot how far it was read; those that a page did not have are asked for again, from where they were. No slot is asked for
twice at a time, and a page is asked for only from where its slots are: so no record of a slot is read twice, and none
is passed over. What is handed out lies before all that is still to be read.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from raftkv.client.arguments import BEYOND, KeyRange
from raftkv.client.types import Record
from raftkv.commands.ranges import Content
from raftkv.limits import SCAN_PAGE_BYTES
from raftkv.v1 import kv_pb2
from shards.slots import slot_bits, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from raftkv.client.engine import Engine
    from raftkv.clock import Clock

_AHEAD: Final = 2
"""Pages of a group that wait for those of others, or for the reader, before no further one is asked for."""

_BUFFER_BYTES: Final = 8 * 1024 * 1024
"""What all groups' pages may come to; with many groups their pages are smaller."""

_LEAST_PAGE_BYTES: Final = 16 * 1024

_KEY: Final = itemgetter(0)


class Ask(NamedTuple):
    """A page to ask for. ``slots``: a bit for each. ``start`` to ``end``: keys as in a scan request."""

    group: int
    slots: int
    start: bytes
    end: bytes


class Merge:
    """How far each of ``slots`` (a bit for each) was read of a range, and what cannot be handed out yet. Pure."""

    def __init__(self, slots: int, start: bytes, end: bytes, *, reverse: bool) -> None:
        self._start = start
        self._end = end
        self._reverse = reverse
        self._reached = {end if reverse else start: slots} if start < end else {}
        """Slots that are not read to the end, by the key up to which they are."""
        self._asked: dict[int, Ask] = {}
        self._waiting: list[tuple[int, list[Record]]] = []
        """Groups, and what their pages have left in ascending order."""
        self._owners: Sequence[int] = ()
        self._groups: dict[int, int] = {}

    def asks(self, owners: Sequence[int]) -> list[Ask]:
        """The pages to ask for now. ``owners``: by slot, the group that probably has it."""
        if owners is not self._owners:
            self._owners, self._groups = owners, _by_group(owners)
        found = []
        under_way = 0
        for ask in self._asked.values():
            under_way |= ask.slots
        positions = sorted(self._reached, reverse=self._reverse)
        for group, mine in self._groups.items():
            if group in self._asked:
                continue
            mine &= ~under_way
            # From where the slots of the group are that have been read least far, to where its others are.
            at = [position for position in positions if self._reached[position] & mine][:2]
            if at and (at[0] == positions[0] or self._waiting_of(group) < _AHEAD):
                found.append(self._ask(group, self._reached[at[0]] & mine, *at))
        self._asked.update((ask.group, ask) for ask in found)
        return found

    def _ask(self, group: int, slots: int, here: bytes, there: bytes | None = None) -> Ask:
        if self._reverse:
            return Ask(group, slots, self._start if there is None else there, here)
        return Ask(group, slots, here, self._end if there is None else there)

    def _waiting_of(self, group: int) -> int:
        return sum(one == group for one, _ in self._waiting)

    def take(self, ask: Ask, slots: int, until: bytes | None, records: list[Record]) -> None:
        """The page that was asked for: its ``slots``, ``next`` and records."""
        del self._asked[ask.group]
        here, there, over = (ask.end, ask.start, self._start) if self._reverse else (ask.start, ask.end, self._end)
        slots &= ask.slots
        lag = self._reached.pop(here) & ~slots
        if lag:
            self._reached[here] = lag
        position = there if until is None else until
        if slots and position != over:
            self._reached[position] = self._reached.get(position, 0) | slots
        if records:
            if self._reverse:
                records.reverse()
            self._waiting.append((ask.group, records))

    def ready(self) -> list[Record]:
        """What can be handed out by now, in the order of the scan."""
        ready: list[list[Record]] = []
        waiting: list[tuple[int, list[Record]]] = []
        edge = max(self._reached, default=b"") if self._reverse else min(self._reached, default=BEYOND)
        for group, records in self._waiting:
            at = bisect_left(records, edge, key=_KEY)
            now, later = (records[at:], records[:at]) if self._reverse else (records[:at], records[at:])
            if now:
                ready.append(now)
            if later:
                waiting.append((group, later))
        self._waiting = waiting
        merged = ready[0] if len(ready) == 1 else sorted((one for part in ready for one in part), key=_KEY)
        if self._reverse:
            merged.reverse()
        return merged


def _by_group(owners: Iterable[int]) -> dict[int, int]:
    """The slots of each group, a bit for each."""
    found: dict[int, list[int]] = {}
    owners = tuple(owners)
    for slot, group in enumerate(owners):
        found.setdefault(group, []).append(slot)
    return {group: int.from_bytes(slot_bits(slots, len(owners)), "little") for group, slots in sorted(found.items())}


class Scan:
    """One scan, to be made once. ``timeout``: seconds for each page. ``limit``: records, None = all.

    ``counted``: records so far, of a scan that counts; it has no batches.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        keys: KeyRange,
        mode: int,
        timeout: float,
        *,
        content: Content = Content.RECORDS,
        limit: int | None = None,
        reverse: bool = False,
    ) -> None:
        self.counted = 0
        self._engine = engine
        self._clock = clock
        self._keys = keys
        self._mode = kv_pb2.Consistency.ValueType(mode)
        self._timeout = timeout
        self._content = kv_pb2.ScanContent.ValueType(content)
        self._left = limit
        self._reverse = reverse
        self._slots = 0
        self._page_bytes = 0
        self._pages: dict[asyncio.Task[kv_pb2.ScanResponse], Ask] = {}

    async def batches(self) -> AsyncGenerator[list[Record], None]:
        """The records, as soon as they can be handed out."""
        engine, keys = self._engine, self._keys
        self._slots = await engine.slots(self._timeout)
        slots = 1 << slot_of(keys.tagged, self._slots) if keys.tagged else (1 << self._slots) - 1
        merge = Merge(slots, keys.start, keys.end, reverse=self._reverse)
        groups = 1 if keys.tagged else len(set(engine.owners()))
        self._page_bytes = min(max(_BUFFER_BYTES // (_AHEAD * groups), _LEAST_PAGE_BYTES), SCAN_PAGE_BYTES)
        pages = self._pages
        try:
            self._ask(merge)
            while pages:
                await asyncio.wait(pages, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in pages if task.done()]:
                    self._take(merge, pages.pop(task), task.result())
                batch = merge.ready()
                if self._left is not None:
                    batch = batch[: self._left]
                    self._left -= len(batch)
                if self._left != 0:
                    # Before the batch is handed out: so they come while it is used.
                    self._ask(merge)
                if batch:
                    yield batch
                if self._left == 0:
                    return
        finally:
            for task in pages:
                task.cancel()
            await asyncio.gather(*pages, return_exceptions=True)

    def _ask(self, merge: Merge) -> None:
        for ask in merge.asks(self._engine.owners()):
            request = kv_pb2.ScanRequest(
                # The lowest of them.
                slot=(ask.slots & -ask.slots).bit_length() - 1,
                limit_bytes=self._page_bytes,
                consistency=self._mode,
                start=ask.start,
                end=b"" if ask.end == BEYOND else ask.end,
                slots=ask.slots.to_bytes(self._slots // 8, "little"),
                limit=self._left or 0,
                reverse=self._reverse,
                content=self._content,
            )
            self._pages[asyncio.create_task(self._engine.page(request, self._timeout))] = ask

    def _take(self, merge: Merge, ask: Ask, page: kv_pb2.ScanResponse) -> None:
        wall = self._clock.wall()
        records = [
            Record(row.key, row.value, row.version, wall + row.ttl_ms / 1000 if row.HasField("ttl_ms") else None)
            for row in page.records
        ]
        slots = int.from_bytes(page.slots, "little")
        merge.take(ask, slots, page.next if page.HasField("next") else None, records)
        self.counted += page.count
