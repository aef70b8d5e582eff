"""Commands of clients on ranges of keys."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Self

from msgspec import Meta

from raftkv.commands.base import Read
from raftkv.commands.bounds import Count, check_bound, check_mode
from raftkv.commands.results import MALFORMED, TOO_LARGE, Result, ScanPage
from raftkv.errors import InvalidArgument
from raftkv.limits import MAX_BOUND_BYTES, MAX_SCAN_PAGE_BYTES, SCAN_PAGE_BYTES
from shards.slots import is_slot_count

if TYPE_CHECKING:
    from raftkv.store.records import Store
    from raftkv.v1 import kv_pb2


class Content(IntEnum):
    """What a page of a scan has of each record."""

    RECORDS = 0
    KEYS = 1
    """All but the values."""
    COUNT = 2
    """Only how many there are."""


_LAST: Final = int(max(Content))


class Scan(Read, frozen=True, tag=70):
    """A page of the records of ``slots`` that the group of ``slot`` serves too, in key order: see
    :class:`raftkv.commands.results.ScanPage`.

    ``start``, ``end``: the first key, and the one behind the last; empty = no bound. ``slots``: a bit for each slot of
    the cluster, that of slot s being bit s % 8 of byte s // 8. ``limit``: records, 0 = any number. ``limit_bytes``:
    about the size of the page; at least one record fits. 0 = SCAN_PAGE_BYTES; MAX_SCAN_PAGE_BYTES caps it.
    ``reverse``: from the last key to the first.
    """

    rpc: ClassVar[str] = "Scan"

    start: bytes
    end: bytes
    slots: bytes
    limit: Count = 0
    limit_bytes: Annotated[int, Meta(ge=0, le=2**32)] = 0
    reverse: bool = False
    content: Annotated[int, Meta(ge=0, le=_LAST)] = 0

    @property
    def span(self) -> tuple[bytes, bytes] | None:
        return self.start, self.end

    def size(self) -> int:
        return len(self.start) + len(self.end) + len(self.slots)

    def refusal(self) -> Result | None:
        if len(self.start) > MAX_BOUND_BYTES or len(self.end) > MAX_BOUND_BYTES:
            return TOO_LARGE
        return None if is_slot_count(8 * len(self.slots)) else MALFORMED

    def read(self, store: Store) -> Result:
        return store.scan(self)

    @classmethod
    def from_request(cls, request: kv_pb2.ScanRequest, slots: int) -> Self:
        if request.slot >= slots:
            raise InvalidArgument(f"no slot {request.slot}: there are {slots}")
        check_bound(request.start)
        check_bound(request.end)
        check_mode(request.consistency)
        wanted = request.slots or b"\xff" * (slots // 8)
        if len(wanted) != slots // 8:
            raise InvalidArgument(f"{8 * len(wanted)} slots: there are {slots}")
        if not 0 <= request.content <= _LAST:
            raise InvalidArgument(f"unknown content {request.content}")
        return cls(
            request.slot,
            request.start,
            request.end,
            wanted,
            request.limit,
            min(request.limit_bytes or SCAN_PAGE_BYTES, MAX_SCAN_PAGE_BYTES),
            request.reverse,
            request.content,
            mode=request.consistency,
        )

    def respond(self, result: Result, response: kv_pb2.ScanResponse) -> None:
        page = result.answer
        assert isinstance(page, ScanPage)
        response.slots, response.count = page.slots, page.count
        if page.next is not None:
            response.next = page.next
        for key, value, version, ttl in page.records:
            row = response.records.add(key=key, value=value, version=version)
            if ttl >= 0:
                row.ttl_ms = ttl
