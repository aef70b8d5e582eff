"""Reading a write-ahead log back: verify everything, then replay. Nothing here changes the disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from raftkv.errors import CorruptData
from raftkv.storage import wal_format as fmt
from raftkv.storage.fs import FileSystem
from raftkv.text import shown

_NAME: Final = re.compile(r"wal-(\d{12,})\.(log|spare)")

LogEntry = tuple[bytes, int, int]
"""(command, index, term)"""


@dataclass(slots=True)
class GroupState:
    """What a node knows of one group after a start. ``entries`` are consecutive from ``snapshot_index`` + 1 on.

    ``founders``: the voters with which the group's log began; empty if the group is not hosted (any more). ``floor``:
    term and index of the end of a log that was dropped, (0, 0) if none was. ``lost``: term and index of an entry that
    it had acknowledged and has lost, (0, 0) if there is none.
    """

    founders: tuple[int, ...] = ()
    term: int = 0
    vote: int = 0
    snapshot_index: int = 0
    snapshot_term: int = 0
    entries: list[LogEntry] = field(default_factory=list)
    floor: tuple[int, int] = (0, 0)
    lost: tuple[int, int] = (0, 0)

    @property
    def last_index(self) -> int:
        """Index of the last entry, the snapshot's if there is none after it."""
        return self.snapshot_index + len(self.entries)

    def align(self, index: int, term: int) -> bool:
        """Move the log's start to a durable snapshot at (``index``, ``term``), ``index`` >= ``snapshot_index``.

        The tail after it is kept, since it may have been acknowledged, unless the entry at ``index`` has another
        term: then the tail belongs to a leader whose entries were replaced, and True is returned.
        """
        held = index - self.snapshot_index
        conflict = 0 < held <= len(self.entries) and self.entries[held - 1][2] != term
        self.entries = [] if conflict else self.entries[held:]
        self.snapshot_index, self.snapshot_term = index, term
        return conflict


@dataclass(slots=True)
class Segment:
    """A segment on disk. ``last`` maps each group to the last index of its entries in it that is still wanted."""

    number: int
    path: str
    size: int
    last: dict[int, int] = field(default_factory=dict)


def cut_segments(segments: Sequence[Segment], group: int, first: int) -> None:
    """Note that the entries of ``group`` from index ``first`` on were truncated."""
    for segment in segments:
        if segment.last.get(group, 0) >= first:
            segment.last[group] = first - 1


def forget_group(segments: Sequence[Segment], group: int) -> None:
    """Note that no entry of ``group`` is wanted any more."""
    for segment in segments:
        segment.last.pop(group, None)


@dataclass(slots=True)
class Recovered:
    """Result of :func:`recover`. Bytes ``position`` to ``dirty_end`` of the last segment are a torn tail (or empty)."""

    groups: dict[int, GroupState]
    diverged: list[int]
    segments: list[Segment]
    lsn: int
    position: int
    dirty_end: int
    last_batch: tuple[int, bytes]
    short: bool
    unused: list[str]


class _Damaged(Exception):
    pass


@dataclass(slots=True)
class _Log:
    """One group during replay. ``base`` is the index before the first entry held, None while not known."""

    state: GroupState
    base: int | None

    @property
    def last(self) -> int | None:
        return None if self.base is None else self.base + len(self.state.entries)

    def entry(self, index: int, term: int, command: bytes) -> None:
        entries = self.state.entries
        if self.base is None or index <= self.base:
            self.base = index - 1
            entries.clear()
        held = index - self.base - 1
        if held > len(entries):
            raise _Damaged(f"entries {self.base + len(entries) + 1} to {index - 1} are missing")
        if held < len(entries):
            del entries[held:]
        entries.append((command, index, term))

    def truncate(self, first: int) -> None:
        if self.base is None or first <= self.base:
            self.base = first - 1
            self.state.entries.clear()
        else:
            del self.state.entries[first - self.base - 1 :]

    def snapshot(self, index: int, term: int) -> None:
        if index < self.state.snapshot_index:
            return
        self.state.snapshot_index, self.state.snapshot_term = index, term
        if self.base is None:
            return
        held = index - self.base
        if held > len(self.state.entries):
            self.base = index
            self.state.entries.clear()
        elif held > 0 and self.state.entries[held - 1][2] == term:
            del self.state.entries[:held]
            self.base = index

    def drop(self, last_term: int, last_index: int) -> None:
        state = self.state
        self.base = 0
        state.founders = ()
        state.entries.clear()
        state.snapshot_index = state.snapshot_term = 0
        state.floor = max(state.floor, (last_term, last_index), state.lost)
        state.lost = (0, 0)

    def finish(self) -> bool:
        """Leave the entries after the snapshot in ``state``; True if they belonged to another history."""
        base = self.base or 0
        state = self.state
        if state.snapshot_index < base:
            raise _Damaged(f"entries {state.snapshot_index + 1} to {base} are missing, and so is a segment")
        index, state.snapshot_index = state.snapshot_index, base
        return state.align(index, state.snapshot_term)


_NUMBERS: Final = {fmt.HARD_STATE: 4, fmt.TRUNCATE: 3, fmt.SNAPSHOT: 4, fmt.DROP: 4, fmt.LOST: 4}
"""Length of the records that hold only numbers."""


def _kind(record: Any) -> int:
    """The kind of a record of the right shape. Raises _Damaged for any other."""
    kind = record[0] if type(record) is tuple and record else None
    if kind == fmt.ENTRY:
        right = len(record) == 5 and _are_numbers(record[1:4]) and type(record[4]) is bytes
    elif kind == fmt.GROUP:
        right = len(record) == 3 and _are_numbers(record[1:2])
    elif kind == fmt.OPENING:
        right = len(record) == 2 and type(record[1]) is tuple
    elif type(kind) is int and kind in _NUMBERS:
        right = len(record) == _NUMBERS[kind] and _are_numbers(record)
    else:
        raise _Damaged(f"unknown kind of record {shown(kind)}")
    if not right:
        raise _Damaged(f"malformed record {shown(record)}")
    return int(kind)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _check_founders(founders: Any) -> None:
    if type(founders) is not tuple or not _are_numbers(founders):
        raise _Damaged(f"malformed founders {shown(founders)}")


class _Replay:
    def __init__(self) -> None:
        self.logs: dict[int, _Log] = {}
        self.segments: list[Segment] = []
        self.opened = False

    def _log(self, group: int) -> _Log:
        log = self.logs.get(group)
        if log is None:
            # Once an opening was read every older group is known, and a group first named later starts empty.
            log = self.logs[group] = _Log(GroupState(), 0 if self.opened else None)
        return log

    def batch(self, records: Sequence[Any]) -> int:
        """Replay one batch; returns how many of its records have an LSN."""
        count = 0
        for record in records:
            kind = _kind(record)
            if kind == fmt.OPENING:
                self._opening(record[1])
                continue
            count += 1
            log = self._log(record[1])
            if kind == fmt.ENTRY:
                _, group, index, term, command = record
                log.entry(index, term, command)
                self.segments[-1].last[group] = index
            elif kind == fmt.HARD_STATE:
                _, _, log.state.term, log.state.vote = record
            elif kind == fmt.TRUNCATE:
                _, group, first = record
                log.truncate(first)
                cut_segments(self.segments, group, first)
            elif kind == fmt.SNAPSHOT:
                _, _, index, term = record
                log.snapshot(index, term)
            elif kind == fmt.GROUP:
                _check_founders(record[2])
                log.state.founders = tuple(record[2])
            elif kind == fmt.LOST:
                _, _, term, index = record
                log.state.lost = max(log.state.lost, (term, index))
            else:
                _, group, last_term, last_index = record
                log.drop(last_term, last_index)
                forget_group(self.segments, group)
        return count

    def _opening(self, groups: Sequence[Any]) -> None:
        for row in groups:
            if type(row) is not tuple or not (_are_numbers(row[:1] + row[2:]) and len(row) in (7, 9, 11)):
                raise _Damaged(f"malformed opening {shown(row)}")
            group, founders, term, vote, snapshot_index, snapshot_term, last, *kept = row
            _check_founders(founders)
            log = self._log(group)
            if log.base is None:
                log.base = last
            elif log.last != last:
                raise _Damaged(f"the log of group {group} ends at {log.last}, it should end at {last}")
            state = log.state
            state.founders, state.term, state.vote = tuple(founders), term, vote
            if kept:
                state.floor = kept[0], kept[1]
            if kept[2:]:
                state.lost = kept[2], kept[3]
            if snapshot_index > state.snapshot_index:
                state.snapshot_index, state.snapshot_term = snapshot_index, snapshot_term
        self.opened = True


def list_segments(fs: FileSystem, folder: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """(segments, spares) of a folder, as (number, path) in order."""
    found: dict[str, list[tuple[int, str]]] = {"log": [], "spare": []}
    for name in fs.listdir(folder):
        if match := _NAME.fullmatch(name):
            found[match[2]].append((int(match[1]), f"{folder}/{name}"))
    return sorted(found["log"]), sorted(found["spare"])


def recover(fs: FileSystem, folder: str, identity: bytes) -> Recovered | None:
    """Verify and replay the log in ``folder``; None if there is none. Raises CorruptData, StorageError, OSError."""
    names, spares = list_segments(fs, folder)
    _check_numbers(folder, names, spares)
    if not names:
        return None
    replay = _Replay()
    lsn: int | None = None
    for position, (number, path) in enumerate(names):
        closed = position < len(names) - 1
        data = fs.read(path, 0, fs.size(path))
        salt = fmt.segment_salt(identity, number)
        size = fmt.check_segment_header(path, data, number, salt)
        if len(data) != size and (closed or len(data) > size):
            raise CorruptData(path, len(data), f"the segment should have {size} bytes; {fmt.ADVICE}")
        replay.segments.append(Segment(number, path, size))
        offset = fmt.SEGMENT_HEADER_BYTES
        last = offset
        while (batch := fmt.read_batch(data, offset, salt)) is not None:
            if lsn is not None and batch.first != lsn + 1:
                raise CorruptData(path, offset, f"records {lsn + 1} to {batch.first - 1} are missing; {fmt.ADVICE}")
            _replay_batch(replay, path, data, batch, first=offset == fmt.SEGMENT_HEADER_BYTES)
            lsn = batch.first + batch.count - 1
            last, offset = offset, batch.end
        _check_rest(path, data, offset, salt, lsn, closed)
    assert lsn is not None  # the first batch of a segment is always whole, or _check_rest raised
    diverged = []
    for group, log in replay.logs.items():
        try:
            if log.finish():
                diverged.append(group)
        except _Damaged as error:
            raise CorruptData(names[0][1], 0, f"group {group}: {error}; {fmt.ADVICE}") from None
    return Recovered(
        groups={group: log.state for group, log in sorted(replay.logs.items())},
        diverged=sorted(diverged),
        segments=replay.segments,
        lsn=lsn,
        position=offset,
        dirty_end=len(data.rstrip(b"\0")),
        last_batch=(last, data[last:offset]),
        short=len(data) != size,
        unused=[path for _, path in spares],
    )


def _check_numbers(folder: str, names: Sequence[tuple[int, str]], spares: Sequence[tuple[int, str]]) -> None:
    expected = names[0][0] if names else 1
    for number, _ in names:
        if number != expected:
            path = f"{folder}/{fmt.segment_name(expected)}"
            raise CorruptData(path, 0, f"this segment is missing, later ones are there; {fmt.ADVICE}")
        expected += 1
    # A spare is made only while its predecessor is in use.
    if spares and spares[-1][0] > max(expected, 1):
        path = f"{folder}/{fmt.segment_name(spares[-1][0] - 1)}"
        raise CorruptData(path, 0, f"this segment is missing, the one to follow it was prepared; {fmt.ADVICE}")


def _replay_batch(replay: _Replay, path: str, data: bytes, batch: fmt.Batch, first: bool) -> None:
    records = fmt.unpack_records(path, data, batch)
    try:
        count = replay.batch(records)
        if first and (not records or records[-1][0] != fmt.OPENING):
            raise _Damaged("the segment does not open with the state of the groups")
    except (_Damaged, TypeError, ValueError, IndexError) as error:
        raise CorruptData(path, batch.offset, f"{error}; {fmt.ADVICE}") from error
    if count != batch.count:
        raise CorruptData(path, batch.offset, f"{count} records, {batch.count} announced; {fmt.ADVICE}")


def _check_rest(path: str, data: bytes, offset: int, salt: int, lsn: int | None, closed: bool) -> None:
    """Tell a torn tail, which was never announced as durable, from damage to what was."""
    if offset == fmt.SEGMENT_HEADER_BYTES:
        # A segment gets its name only after its first batch was synced.
        raise CorruptData(path, offset, f"the segment's first batch is not valid; {fmt.ADVICE}")
    if closed:
        if data.count(0, offset) != len(data) - offset:
            raise CorruptData(path, offset, f"no valid batch in a segment that others follow; {fmt.ADVICE}")
    elif (later := fmt.find_batch(data, offset + 1, salt, (lsn or 0) + 1)) is not None:
        problem = f"no valid batch, but the one at byte {later.offset} was written after it was durable"
        raise CorruptData(path, offset, f"{problem}; {fmt.ADVICE}")
