"""The write-ahead log: one per node, for the entries and the hard state of all groups.

Records are gathered in memory; :meth:`Wal.flush` hands all of them to a worker as one batch, one write and one
fdatasync, while the next batch gathers. Since there is one log, what is durable is always a prefix of what was
appended: ``wal.durable`` says how much. Whoever sends a message that speaks of a record waits until
``wal.durable`` has reached the value that ``wal.appended`` had after the record.

A failed write or sync ends the log: nothing is retried, since after a failed fdatasync the kernel may have dropped the
data while a second call reports success. Every segment is made before anything is written to it, though, so a disk
without room for the next one ends nothing: the log waits, and with it all that speaks of what was appended meanwhile.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import msgpack

from raftkv import limits
from raftkv.errors import CorruptData, StorageError
from raftkv.storage import wal_format as fmt
from raftkv.storage.fs import File, FileSystem, Worker
from raftkv.storage.wal_recovery import GroupState, Recovered, Segment, cut_segments, forget_group, recover

__all__ = ["GroupState", "Wal"]

_LARGE_COMMAND: Final = 4096
"""Commands of at least this many bytes are not copied when they are appended."""

_EMPTY_BIN_BYTES: Final = 2

_INDEX_BYTES: Final = 8
"""By which a group's part of a segment's opening may grow with the batch that follows it."""

_LACKING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""Why a file cannot be made now and can later."""


@dataclass(frozen=True, slots=True)
class _Spare:
    """A file of zeros that becomes the next segment."""

    path: str
    size: int
    file: File


@dataclass(slots=True)
class _Tracked:
    """A group's state as of the last record appended; ``last`` without the entries of the batch that gathers."""

    founders: tuple[int, ...] = ()
    term: int = 0
    vote: int = 0
    snapshot_index: int = 0
    snapshot_term: int = 0
    last: int = 0
    floor: tuple[int, int] = (0, 0)
    lost: tuple[int, int] = (0, 0)


class Wal:
    """See the module. All methods but :meth:`open` are for the loop's thread; only worker jobs block."""

    appended: int
    """LSN (running number) of the last record appended."""
    durable: int
    """LSN up to which every record is on stable storage."""
    on_durable: list[Callable[[int], None]]
    """Called in the loop with ``durable`` each time it has advanced."""
    recovered: dict[int, GroupState]
    """State of each group as of :meth:`open`; the log keeps no reference to it, the node may take it over."""

    def __init__(
        self,
        fs: FileSystem,
        worker: Worker,
        background: Worker,
        folder: str,
        on_failure: Callable[[BaseException], None],
        identity: bytes,
        segment_bytes: int,
        file: File,
        found: Recovered,
    ) -> None:
        self._fs = fs
        self._worker = worker
        self._background = background
        self._folder = folder
        self._on_failure = on_failure
        self._identity = identity
        self._segment_bytes = segment_bytes
        self._file = file
        self._segments = found.segments
        self._published = found.segments[-1].number  # the last segment that has its name durably
        self._position = found.position
        self._salt = fmt.segment_salt(identity, found.segments[-1].number)
        self.appended = self.durable = found.lsn
        self.on_durable = []
        self.recovered = found.groups
        self._groups = {
            group: _Tracked(
                s.founders, s.term, s.vote, s.snapshot_index, s.snapshot_term, s.last_index, s.floor, s.lost
            )
            for group, s in found.groups.items()
        }
        self._parts: list[bytes] = []
        self._batch: dict[int, int] = {}  # group -> index of its last entry in the batch that gathers
        self._pack: Callable[[object], bytes] = msgpack.Packer().pack
        self._busy = False
        self._closed = False
        self._failure: BaseException | None = None
        self._spare: _Spare | None = None
        self._preparing = False
        self._lacking: OSError | None = None  # why the next segment could not be made at the last try
        self._resting = False
        self._waits = False
        self._limit = sys.maxsize
        self._removable: tuple[int, int] | None = None  # (LSN that must be durable first, last segment to remove)
        for group in found.diverged:
            self._restart_log(group, found.groups[group])

    @classmethod
    def open(
        cls,
        fs: FileSystem,
        worker: Worker,
        folder: str,
        on_failure: Callable[[BaseException], None],
        *,
        background: Worker | None = None,
        identity: bytes = b"",
        segment_bytes: int = limits.WAL_SEGMENT_BYTES,
        must_exist: bool = False,
    ) -> Wal:
        """Recover the log in ``folder``, or start one; blocks while it reads.

        ``worker`` does writes and syncs; ``background`` (default: the same) prepares and removes segments, which takes
        long. ``identity`` tells this node's segments from any other's: pass the incarnation. ``must_exist``: this node
        has started before, so an empty folder means a lost log. ``on_failure`` is called once, in the loop, when
        the log has died; the node must stop.

        Raises CorruptData (nothing was changed on disk), StorageError, OSError.
        """
        fs.makedirs(folder)
        found = recover(fs, folder, identity)
        if found is None:
            if must_exist:
                raise CorruptData(f"{folder}/{fmt.segment_name(1)}", 0, f"the log is missing; {fmt.ADVICE}")
            found, file = _start(fs, folder, identity, segment_bytes)
        else:
            file = _settle(fs, folder, found)
        return cls(fs, worker, background or worker, folder, on_failure, identity, segment_bytes, file, found)

    # Appending: memory only.

    def entry(self, group: int, index: int, term: int, command: bytes) -> None:
        """Append a log entry. ``index`` follows the group's last one, or replaces an entry and all after it.

        A gap would make the log unreadable, so it ends the log instead.
        """
        last = self._batch.get(group)
        if last is None:
            last = self._tracked(group).last
        if index > last + 1:
            self._fail(StorageError(f"group {group}: entry {index} appended after entry {last}"))
        if len(command) < _LARGE_COMMAND:
            self._parts.append(self._pack((fmt.ENTRY, group, index, term, command)))
        else:
            head = self._pack((fmt.ENTRY, group, index, term, b""))
            self._parts += (b"%b\xc6%b" % (head[:-_EMPTY_BIN_BYTES], len(command).to_bytes(4, "big")), command)
        self._batch[group] = index
        self.appended += 1

    def group(self, group: int, founders: Iterable[int]) -> None:
        """Note that this node hosts the group, whose log began with the voters ``founders``."""
        state = self._tracked(group)
        state.founders = tuple(founders)
        self._append((fmt.GROUP, group, state.founders))

    def drop(self, group: int, last_term: int, last_index: int) -> None:
        """Note that the group is hosted no more and its log, which ended at (``last_term``, ``last_index``), is gone.

        Term and vote stay, and the furthest end of a log that was dropped: a node that comes back to the group must not
        break what it had promised there.
        """
        state = self._tracked(group)
        state.founders = ()
        state.snapshot_index = state.snapshot_term = state.last = 0
        state.floor = max(state.floor, (last_term, last_index), state.lost)
        state.lost = (0, 0)
        self._batch.pop(group, None)
        forget_group(self._segments, group)
        self._append((fmt.DROP, group, last_term, last_index))

    def lost(self, group: int, term: int, index: int) -> None:
        """Note that the group's log lacks an entry that this node had acknowledged. It stays so until it is dropped."""
        state = self._tracked(group)
        state.lost = max(state.lost, (term, index))
        self._append((fmt.LOST, group, term, index))

    def promised(self, group: int) -> GroupState:
        """What a new, empty log of ``group`` must keep to: term, vote, and the end of the log dropped before it."""
        state = self._tracked(group)
        return GroupState(term=state.term, vote=state.vote, floor=state.floor)

    def hard_state(self, group: int, term: int, vote: int) -> None:
        """Note the term and the node voted for in it, 0 for none."""
        state = self._tracked(group)
        state.term, state.vote = term, vote
        self._append((fmt.HARD_STATE, group, term, vote))

    def truncate(self, group: int, from_index: int) -> None:
        """Remove the entries from index ``from_index`` on."""
        state = self._tracked(group)
        state.last = min(state.last, from_index - 1)
        if self._batch.get(group, 0) >= from_index:
            self._batch[group] = from_index - 1
        cut_segments(self._segments, group, from_index)
        self._append((fmt.TRUNCATE, group, from_index))

    def snapshot(self, group: int, index: int, term: int) -> None:
        """Note that a snapshot covers the log up to ``index``. The snapshot must be durable already.

        If ``index`` is beyond the log's end, the log goes on after it.
        """
        state = self._tracked(group)
        if index >= state.snapshot_index:
            state.snapshot_index, state.snapshot_term = index, term
            if index > self._batch.get(group, state.last):
                self._batch.pop(group, None)
                state.last = index
        self._append((fmt.SNAPSHOT, group, index, term))

    def _restart_log(self, group: int, state: GroupState) -> None:
        # The entry that contradicts the snapshot goes too, or the next start would drop what follows the snapshot.
        self.truncate(group, state.snapshot_index)
        self.snapshot(group, state.snapshot_index, state.snapshot_term)

    def _tracked(self, group: int) -> _Tracked:
        state = self._groups.get(group)
        if state is None:
            state = self._groups[group] = _Tracked()
        return state

    def _append(self, record: tuple[object, ...]) -> None:
        self._parts.append(self._pack(record))
        self.appended += 1

    # Flushing.

    @property
    def failure(self) -> BaseException | None:
        """What ended the log, None while it lives."""
        return self._failure

    def flush(self) -> None:
        """Start writing what has gathered, unless a write is under way: its end starts the next one."""
        if self._busy or not self._parts or self._failure is not None or self._closed:
            return
        size = self._gathered()
        if self._position + size > self._segments[-1].size:
            self._flush_into_new_segment(size)
            return
        file, offset, salt = self._file, self._position, self._salt
        parts, durable, last = self._take_batch(self._segments[-1])
        self._position += size
        batch = fmt.pack_batch(salt, durable + 1, last - durable, durable, parts)
        self._worker.submit(lambda: file.write_durably(offset, batch), lambda _, failure: self._written(last, failure))

    def _take_batch(self, segment: Segment) -> tuple[list[bytes], int, int]:
        """(records that gathered, LSN before the first, LSN of the last); they will go into ``segment``."""
        self._busy = True
        parts, self._parts = self._parts, []
        for group, index in self._batch.items():
            segment.last[group] = self._tracked(group).last = index
        self._batch.clear()
        return parts, self.durable, self.appended

    def _gathered(self) -> int:
        """Size of the batch that has gathered."""
        return fmt.BATCH_HEADER_BYTES + sum(map(len, self._parts))

    def _needed(self, size: int) -> int:
        """Size of a segment that a batch of ``size`` fits into."""
        return fmt.SEGMENT_HEADER_BYTES + size + len(self._opening()) + _INDEX_BYTES * len(self._batch)

    def _beyond_limit(self, needed: int) -> bool:
        return self.total_bytes + max(needed, self._segment_bytes) > self._limit

    def _flush_into_new_segment(self, size: int) -> None:
        spare, needed = self._spare, self._needed(size)
        self._waits = True
        if self._beyond_limit(needed):
            return
        if spare is None or spare.size < needed:
            # A batch that fits no usual segment may have grown by the time its own is ready.
            self._make_spare(self._segment_bytes if needed <= self._segment_bytes else needed + needed // 4)
            return
        self._waits, self._spare = False, None
        old = self._file
        number = self._segments[-1].number + 1
        segment = Segment(number, f"{self._folder}/{fmt.segment_name(number)}", spare.size)
        parts, durable, last = self._take_batch(segment)
        parts.append(self._opening())
        self._position = fmt.SEGMENT_HEADER_BYTES + size + len(parts[-1])
        self._segments.append(segment)
        salt = self._salt = fmt.segment_salt(self._identity, number)

        def work() -> File:
            batch = fmt.pack_batch(salt, durable + 1, last - durable, durable, parts)
            _publish(self._fs, self._folder, segment, salt, batch, spare)
            old.close()
            return spare.file

        def done(file: File | None, failure: BaseException | None) -> None:
            if file is not None:
                self._file = file
                self._published = number
            self._written(last, failure)

        self._worker.submit(work, done)

    def _written(self, last: int, failure: BaseException | None) -> None:
        self._busy = False
        if failure is not None:
            self._fail(failure)
        if self._failure is not None:
            return
        self.durable = last
        try:
            for listener in self.on_durable:
                listener(last)
        finally:
            self.flush()
            self._prepare()
            self._remove()

    def _fail(self, failure: BaseException) -> None:
        if self._failure is None:
            self._failure = failure
            self._parts.clear()
            self._on_failure(failure)

    def close(self) -> None:
        """Close the files after what is under way; what was not flushed is gone. Call it before the workers end."""
        if not self._closed:
            self._closed = True
            self._worker.submit(lambda: None, lambda *_: self._close_files())

    def _close_files(self) -> None:
        self._file.close()
        if self._spare is not None:
            self._spare.file.close()

    # Segments.

    @property
    def segments(self) -> int:
        """Number of segments on disk."""
        return len(self._segments)

    @property
    def total_bytes(self) -> int:
        """Size of all segments on disk."""
        return sum(segment.size for segment in self._segments)

    def pinned_by(self) -> tuple[int, int | None]:
        """(total bytes, the group that keeps the oldest segment from going; None if no group does).

        Of several groups it is the one whose snapshot is the furthest behind. The segment in use never goes.
        """
        worst, lag = None, 0
        if len(self._segments) > 1:
            for group, last in self._segments[0].last.items():
                behind = last - self._tracked(group).snapshot_index
                if behind > lag:
                    worst, lag = group, behind
        return self.total_bytes, worst

    def collect(self) -> None:
        """Remove the oldest segments that hold nothing but entries covered by snapshots.

        It happens once all that was appended so far is durable, the SNAPSHOT records among it.
        """
        number = 0
        for segment in self._segments[:-1]:
            if any(last > self._tracked(group).snapshot_index for group, last in segment.last.items()):
                break
            number = segment.number
        if number:
            self._removable = (self.appended, number)
            self._remove()

    def _remove(self) -> None:
        if self._removable is None or self._removable[0] > self.durable or self._failure is not None or self._closed:
            return
        number, self._removable = self._removable[1], None
        gone = [segment.path for segment in self._segments if segment.number <= number]
        del self._segments[: len(gone)]

        def work() -> None:
            for path in gone:
                self._fs.remove(path)
                self._fs.sync_dir(self._folder)  # each by itself: a power loss between them must not leave a hole

        self._background.submit(work, lambda _, failure: None if failure is None else self._fail(failure))

    def _prepare(self) -> None:
        """Get the next segment ready once half of the present one is used: filling it with zeros takes long."""
        if self._spare is None and self._position * 2 >= self._segments[-1].size:
            self._make_spare(self._segment_bytes)

    @property
    def waiting(self) -> OSError | None:
        """Why nothing is written at present: there is no room for the next segment. None while the log goes on."""
        return self._lacking if self._waits else None

    def limit(self, size: int) -> None:
        """Begin no segment with which all would take more than ``size`` bytes; what is appended waits meanwhile."""
        self._limit = size
        if self._waits:
            self.flush()

    @property
    def limited(self) -> bool:
        """Whether something waits because of :meth:`limit`."""
        return self._waits and self._beyond_limit(self._needed(self._gathered()))

    def retry(self) -> None:
        """Try again to make the next segment, if that failed for want of room or descriptors; see :attr:`waiting`."""
        if self._resting:
            self._resting = False
            self.flush()
            self._prepare()

    def _make_spare(self, size: int) -> None:
        segment, small = self._segments[-1], self._spare
        if self._preparing or self._resting or self._failure is not None or self._closed:
            return
        if segment.number != self._published:
            return  # the spare's name testifies to its predecessor
        path = f"{self._folder}/{fmt.spare_name(segment.number + 1)}"
        self._preparing, self._spare = True, None

        def work() -> File:
            if small is not None:
                small.file.close()
                self._fs.remove(small.path)
            if self._fs.free_space(self._folder) < size:  # others need what there is
                raise OSError(errno.ENOSPC, "No space left on device", path)
            return self._fs.create(path, size)

        def done(file: File | None, failure: BaseException | None) -> None:
            self._preparing = False
            if file is not None:
                self._spare, self._lacking = _Spare(path, size, file), None
                if self._closed:
                    file.close()
            elif isinstance(failure, OSError) and failure.errno in _LACKING:
                self._lacking, self._resting = failure, True
            elif failure is not None:
                self._fail(failure)
            self.flush()

        self._background.submit(work, done)

    def _opening(self) -> bytes:
        return self._pack((fmt.OPENING, [(group, *_opening(s)) for group, s in sorted(self._groups.items())]))


def _opening(state: _Tracked) -> tuple[object, ...]:
    fields = state.founders, state.term, state.vote, state.snapshot_index, state.snapshot_term, state.last
    if state.lost != (0, 0):
        return (*fields, *state.floor, *state.lost)
    return fields if state.floor == (0, 0) else (*fields, *state.floor)


def _publish(fs: FileSystem, folder: str, segment: Segment, salt: int, batch: bytes, spare: _Spare) -> None:
    """Give a segment its name once its header and its first batch are durable."""
    spare.file.write_at(0, fmt.pack_segment_header(segment.number, salt, segment.size) + batch)
    spare.file.sync()
    fs.rename(spare.path, segment.path)
    fs.sync_dir(folder)


def _start(fs: FileSystem, folder: str, identity: bytes, segment_bytes: int) -> tuple[Recovered, File]:
    _remove_unused(fs, folder, [])
    salt = fmt.segment_salt(identity, 1)
    segment = Segment(1, f"{folder}/{fmt.segment_name(1)}", segment_bytes)
    batch = fmt.pack_batch(salt, 1, 0, 0, [msgpack.packb((fmt.OPENING, []))])
    temporary = f"{folder}/{fmt.TEMPORARY}"
    file = fs.create(temporary, segment_bytes)
    _publish(fs, folder, segment, salt, batch, _Spare(temporary, segment_bytes, file))
    position = fmt.SEGMENT_HEADER_BYTES + len(batch)
    return Recovered({}, [], [segment], 0, position, position, (fmt.SEGMENT_HEADER_BYTES, batch), False, []), file


def _settle(fs: FileSystem, folder: str, found: Recovered) -> File:
    """Make what was read durable before anything builds on it, and cut the torn tail."""
    segment = found.segments[-1]
    file = fs.open(segment.path)
    end = segment.size if found.short else found.dirty_end
    if end > found.position:
        file.write_at(found.position, bytes(end - found.position))
    # The last batch may be in the page cache only, even marked clean there after a failed sync: write it again.
    file.write_at(*found.last_batch)
    file.sync()
    _remove_unused(fs, folder, found.unused)
    return file


def _remove_unused(fs: FileSystem, folder: str, spares: Iterable[str]) -> None:
    temporary = f"{folder}/{fmt.TEMPORARY}"
    for path in (*spares, *((temporary,) if fs.exists(temporary) else ())):
        fs.remove(path)
    fs.sync_dir(folder)
