"""What is copied of slots that move: pages of records, changes and sessions; the summary that proves it complete.

A page is read at the source from a cursor and applied at the target, which stores the cursor that comes next. All that
a cursor says is in terms of replicated counters, so any replica of the source can go on from it:

1. For each slot, a walk over its keys. The cursor holds the slot's counter when its walk began: its mark.
2. The keys that changed after the marks, in the order of their last changes; the marks move along. A slot that still
   serves can change again, so this has an end only once the slot is frozen.
3. The events of the slots, from a place in the group's history on, up to the present.
4. Of frozen slots, the sessions.

Events may go from the source's history before they were copied; the target notes from which number on it has all. The
state of a page's keys is that of the moment it was read, which may be later than the mark; changes that it already
shows are sent once more. Pages chain: each names the cursor it was read from, and the target applies it only on top of
just that one. So whatever is repeated, late or read at a replica that lags, nothing is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from raftkv import limits
from raftkv.commands.bounds import CLIENT_BYTES, MAX_COUNT, MAX_EXPIRES
from raftkv.commands.results import MALFORMED, ExportPage, Result
from raftkv.errors import Code
from raftkv.store.codec import binary, pack, unpack, whole
from raftkv.store.digest import DIGEST_BYTES
from raftkv.store.history import History, checked
from raftkv.store.packed import Record, fields, packed, value_bytes
from raftkv.store.sessions import Outcome, Session, row_bytes, session_from_row, session_row
from raftkv.store.slot import Slot, SlotState

_OVERHEAD: Final = 24

_EVENTS: Final = 4096
"""Events of a history that a page looks at."""


@dataclass
class _Position:
    """A cursor. ``marks``: by slot, in their order, of those whose walk has begun. ``key``: the last one of the walk
    over the last of these, None = it is over. ``session``: (place of the slot, last client), None = not yet there.
    ``event``: the place in the history of the next event to be looked at."""

    marks: list[int] = field(default_factory=list)
    key: bytes | None = None
    session: tuple[int, bytes] | None = None
    event: int = 0

    def encode(self) -> bytes:
        return pack([self.marks, self.key, self.session, self.event])

    @staticmethod
    def decode(cursor: bytes, slots: int) -> _Position:
        """Raises ValueError for what is no cursor of a move of so many slots."""
        if not cursor:
            return _Position()
        value = unpack(cursor)
        if not isinstance(value, list) or len(value) != 4 or not isinstance(value[0], list):
            raise ValueError("not a cursor")
        marks, key, session, event = value
        if whole(event) < 0:
            raise ValueError("no place in a history")
        if not all(type(mark) is int and 0 <= mark <= MAX_COUNT for mark in marks):
            raise ValueError("marks out of range")
        if key is None:
            if len(marks) != slots:
                raise ValueError("marks are missing")
        elif not 0 < len(marks) <= slots or session is not None or len(binary(key)) > limits.MAX_KEY_BYTES:
            raise ValueError("not a walk")
        if session is None:
            return _Position(marks, key, None, event)
        if not isinstance(session, list) or len(session) != 2:
            raise ValueError("not a session")
        if not 0 <= whole(session[0]) <= slots or len(binary(session[1])) not in (0, CLIENT_BYTES):
            raise ValueError("not a session")
        return _Position(marks, key, (session[0], session[1]), event)


class _Page:
    """Collects what fits: parts [slot, [key, value, version, expires, ...], [deleted key, ...], [session, ...]], and
    events as they stand in a history."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._empty = True
        self._parts: dict[int, list[Any]] = {}
        self.events: list[Any] = []

    def room(self, size: int) -> bool:
        """Whether ``size`` more bytes fit; the first ones always do."""
        self._left -= size
        fits = self._left >= 0 or self._empty
        self._empty = False
        return fits

    def part(self, slot: Slot) -> list[Any]:
        return self._parts.setdefault(slot.number, [slot.number, [], [], []])

    def encode(self, start: bytes) -> bytes:
        return pack([start, list(self._parts.values()), self.events])


def export(slots: Sequence[Slot], history: History, cursor: bytes, limit_bytes: int) -> Result:
    """See :meth:`raftkv.store.records.Store.export`. ``slots``: all of a move at its source, in order."""
    try:
        position = _Position.decode(cursor, len(slots))
    except ValueError:
        return MALFORMED
    frozen = slots[0].state is SlotState.FROZEN
    if (
        any(mark > slot.counter for mark, slot in zip(position.marks, slots, strict=False))
        or position.event > history.end
        or (position.session is not None and not frozen)
    ):
        return Result(Code.CONDITION_FAILED, detail="this replica is behind the cursor")
    page = _Page(min(limit_bytes, limits.MAX_SCAN_PAGE_BYTES) if limit_bytes > 0 else limits.SCAN_PAGE_BYTES)
    done = (
        _walk(slots, position, page)
        and _changes(slots, position, page)
        and _events(slots, position, page, history)
        and (not frozen or _sessions(slots, position, page))
    )
    records, size = _left(slots, position)
    return Result(Code.OK, answer=ExportPage(position.encode(), page.encode(cursor), records, size, done))


def _walk(slots: Sequence[Slot], position: _Position, page: _Page) -> bool:
    """Returns whether the walks over all slots are over."""
    marks = position.marks
    while True:
        if position.key is None:
            if len(marks) == len(slots):
                return True
            marks.append(slots[len(marks)].begin_walk())
            position.key = b""
        slot = slots[len(marks) - 1]
        for key in slot.walk_after(marks[-1], position.key):
            record = slot.records.get(key)
            if not page.room(_size(key, record)):
                return False
            position.key = key
            if record is not None:
                page.part(slot)[1] += (key, *fields(record))
        position.key = None


def _changes(slots: Sequence[Slot], position: _Position, page: _Page) -> bool:
    """Returns whether there is no change after the marks any more."""
    for place, slot in enumerate(slots):
        for key, counter in slot.changes_after(position.marks[place]):
            record = slot.records.get(key)
            if not page.room(_size(key, record)):
                return False
            position.marks[place] = counter
            if record is None:
                page.part(slot)[2].append(key)
            else:
                page.part(slot)[1] += (key, *fields(record))
        position.marks[place] = slot.counter
    return True


def _events(slots: Sequence[Slot], position: _Position, page: _Page, history: History) -> bool:
    """Returns whether all events were sent, or passed over as they are of other slots."""
    numbers = {slot.number for slot in slots}
    left = _EVENTS
    position.event = max(position.event, history.first)
    while left and position.event < history.end:
        found, after = history.read(position.event, left)
        for at in range(0, len(found), 3):
            if found[at] in numbers:
                event = found[at : at + 3]
                if not page.room(_OVERHEAD + len(event[1]) + len(event[2])):
                    position.event += at // 3
                    return False
                page.events += event
        left -= after - position.event
        position.event = after
    return position.event == history.end


def _sessions(slots: Sequence[Slot], position: _Position, page: _Page) -> bool:
    """Returns whether all sessions were sent."""
    place, after = position.session or (0, b"")
    for slot in slots[place:]:
        clients = sorted(slot.sessions)
        for client in clients[bisect_right(clients, after) :]:
            row = session_row(client, slot.sessions[client])
            if not page.room(row_bytes(row)):
                position.session = (place, after)
                return False
            page.part(slot)[3].append(row)
            after = client
        place, after = place + 1, b""
    position.session = (place, b"")
    return True


def _size(key: bytes, record: Record | None) -> int:
    return _OVERHEAD + len(key) + (0 if record is None else value_bytes(record))


def _left(slots: Sequence[Slot], position: _Position) -> tuple[int, int]:
    """About how many records and bytes are still to be sent; at least that much unless something is deleted."""
    records = size = 0
    for place, slot in enumerate(slots):
        if place >= len(position.marks):
            records += len(slot.records)
            size += slot.bytes
            continue
        left = min(len(slot.dirty or ()), slot.counter - position.marks[place])
        if place == len(position.marks) - 1 and position.key is not None and slot.walk is not None:
            order = slot.walk[1]
            left += len(order) - bisect_right(order, position.key)
        records += left
        size += left * slot.bytes // (len(slot.records) or 1)
    return records, size


class Part(NamedTuple):
    """What a page has of one slot."""

    slot: int
    records: list[tuple[bytes, Record]]
    deleted: list[bytes]
    sessions: list[tuple[bytes, Session]]


class Loaded(NamedTuple):
    """A page. ``start``: the cursor that it was read from. ``events``: as they stand in a history."""

    start: bytes
    parts: list[Part]
    events: list[Any]


def load(blob: bytes) -> Loaded:
    """A page that :func:`export` has made. Raises ValueError for anything else."""
    value = unpack(blob)
    try:
        start, parts, events = value
        found = [Part(whole(n), _records(r), _keys(d), _rows(s)) for n, r, d, s in parts]
        return Loaded(binary(start), found, checked(events))
    except TypeError as problem:
        raise ValueError(str(problem)) from problem


def _records(row: list[Any]) -> list[tuple[bytes, Record]]:
    found = []
    each = iter(row)
    for key, value, version, expires in zip(each, each, each, each, strict=True):
        if not (0 < len(binary(key)) <= limits.MAX_KEY_BYTES and len(binary(value)) <= limits.MAX_VALUE_BYTES):
            raise ValueError("too large")
        if not (0 < whole(version) <= MAX_COUNT and 0 <= whole(expires) <= MAX_EXPIRES):
            raise ValueError("out of range")
        found.append((key, packed(value, version, expires)))
    return found


def _keys(keys: list[Any]) -> list[bytes]:
    return [binary(key) for key in keys]


def _rows(rows: list[Any]) -> list[tuple[bytes, Session]]:
    found = [session_from_row(row) for row in rows]
    for client, session in found:
        if len(client) != CLIENT_BYTES or not 0 <= session.first <= MAX_COUNT:
            raise ValueError("not a session")
        if not all(-MAX_EXPIRES <= time <= MAX_EXPIRES for time in (session.last, session.queued)):
            raise ValueError("times out of range")
        if not all(0 < seq <= MAX_COUNT and _in_range(outcome) for seq, outcome in session.results()):
            raise ValueError("results out of range")
    return found


def _in_range(outcome: Outcome) -> bool:
    if isinstance(outcome, int):
        return abs(outcome) <= MAX_COUNT + 1
    return abs(outcome.time) <= MAX_EXPIRES and outcome.size <= limits.MAX_VALUE_BYTES + limits.MAX_KEPT_BYTES


class Summary(NamedTuple):
    """What the frozen slots of a move hold: all that the target cannot know from pages, and proof that it has these.

    ``frozen``: group time of the source (ms) when they were frozen. ``slots``: (number, counter, floor, forgotten) of
    each, in order. ``records``: how many. ``digest``: of these, the sessions and the events.
    """

    frozen: int
    slots: list[tuple[int, int, bytes, int]]
    records: int
    digest: bytes

    @property
    def numbers(self) -> tuple[int, ...]:
        """The slots."""
        return tuple(row[0] for row in self.slots)

    @property
    def forgotten(self) -> list[int]:
        """Of each slot, up to which number events are kept no more."""
        return [row[3] for row in self.slots]

    @staticmethod
    def of(slots: Sequence[Slot], forgotten: Sequence[int], content: tuple[int, bytes]) -> Summary:
        """Summary of frozen slots in order. ``content``: their content_digest, with what was ``forgotten`` then."""
        rows = [(slot.number, slot.counter, slot.floor, up_to) for slot, up_to in zip(slots, forgotten, strict=True)]
        return Summary(slots[0].frozen, rows, *content)

    @staticmethod
    def decode(data: bytes) -> Summary:
        """Raises ValueError for what is no summary."""
        value = unpack(data)
        try:
            frozen, slots, records, digest = value
            rows = [
                (whole(number), whole(counter), binary(floor), whole(gone)) for number, counter, floor, gone in slots
            ]
        except TypeError as problem:
            raise ValueError(str(problem)) from problem
        if not 0 <= whole(frozen) <= MAX_EXPIRES or whole(records) < 0 or len(binary(digest)) != DIGEST_BYTES:
            raise ValueError("not a summary")
        if not all(
            0 <= gone <= counter <= MAX_COUNT and len(floor) in (0, CLIENT_BYTES) for _, counter, floor, gone in rows
        ):
            raise ValueError("not a summary")
        return Summary(frozen, rows, records, digest)

    def encode(self) -> bytes:
        return pack(list(self))
