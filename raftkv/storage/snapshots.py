"""Snapshot files of all groups of a node: written, received, verified, and only then given their name.

A file without ``.tmp`` is whole and durable. The newest one of a group is never removed or replaced by an older one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final
from zlib import crc32

from raftkv.errors import CorruptData, StorageError
from raftkv.storage import snapshot_format as fmt
from raftkv.storage.fs import File, FileSystem, Worker
from raftkv.storage.snapshot_format import SnapshotInfo

__all__ = ["IncomingSnapshot", "SnapshotInfo", "SnapshotStore", "SnapshotWriter"]

_SYNC_BYTES: Final = 4 * 1024 * 1024
"""Synced this often, so that no flood of dirty pages holds up the syncs of the log."""

_TEMPORARY: Final = ".tmp"

Done = Callable[[BaseException | None], None]
Committed = Callable[[SnapshotInfo | None, BaseException | None], None]


class SnapshotStore:
    """The snapshots in one folder. Blocking work runs in ``worker``; ``done`` callbacks come in the loop."""

    def __init__(self, fs: FileSystem, worker: Worker, folder: str) -> None:
        """Find each group's latest snapshot and remove unfinished files; blocks.

        Raises CorruptData if a latest snapshot is damaged at its start or end (what is between is verified while it is
        read), StorageError, OSError. Nothing is removed then.
        """
        self._fs = fs
        self._worker = worker
        self._folder = folder
        self.hurry = False
        """Whether snapshots of this node's own are needed soon."""
        self._temporaries = 0
        self._writers: set[SnapshotWriter] = set()
        self._latest: dict[int, SnapshotInfo] = {}  # written by the worker, once a file is durable
        fs.makedirs(folder)
        names = fs.listdir(folder)
        newest: dict[int, tuple[int, int]] = {}
        for group, index, term in _parse(names):
            newest[group] = max(newest.get(group, (0, 0)), (index, term))
        for group, (index, term) in newest.items():
            path = f"{folder}/{fmt.snapshot_name(group, index, term)}"
            self._latest[group] = fmt.read_info(fs, path, group, index, term)
        for name in names:
            if name.endswith(_TEMPORARY):
                fs.remove(f"{folder}/{name}")
        fs.sync_dir(folder)

    def latest(self, group: int) -> SnapshotInfo | None:
        return self._latest.get(group)

    @property
    def busy(self) -> bool:
        """Whether a snapshot of this node's own is being written."""
        return bool(self._writers)

    def room(self) -> int:
        """Bytes that a new snapshot may take. Raises OSError."""
        return self._fs.free_space(self._folder)

    def open(self, info: SnapshotInfo) -> Iterator[bytes]:
        """The snapshot's chunks, each verified. Raises CorruptData (also after the last chunk), OSError."""
        return fmt.read_chunks(self._fs, info)

    def damaged(self, info: SnapshotInfo, chunk: int, problem: Exception) -> CorruptData:
        """What to raise when a verified chunk, counted from 0, does not hold what it should. Raises OSError."""
        return CorruptData(info.path, fmt.chunk_offset(self._fs, info, chunk), f"{problem}; {fmt.ADVICE}")

    def missing(self, group: int, index: int) -> CorruptData:
        """What to raise when the log goes on behind a snapshot that is not there."""
        path = f"{self._folder}/{fmt.snapshot_name(group, index, '*')}"
        return CorruptData(path, 0, f"the snapshot is missing; {fmt.ADVICE_MISSING}")

    def read_raw(self, info: SnapshotInfo, offset: int, size: int) -> bytes:
        """Bytes of the file as they are, to be sent to a peer; fewer than ``size`` at its end.

        Raises StorageError if the snapshot was pruned meanwhile.
        """
        try:
            return self._fs.read(info.path, offset, size)
        except FileNotFoundError:
            raise StorageError(f"{info.path}: this snapshot was replaced by a newer one") from None

    def writer(self, group: int, index: int, term: int, voters: Sequence[int]) -> SnapshotWriter:
        """Begin a snapshot of the group's state after entry (``index``, ``term``), with the voters as of then."""
        path = self._temporary(group, index, term)
        info = SnapshotInfo(group, index, term, tuple(voters), self._path(group, index, term), 0)
        writer = SnapshotWriter(self, self._fs, self._worker, path, info)
        self._writers.add(writer)
        return writer

    def release(self, writer: SnapshotWriter) -> None:
        """A writer has ended."""
        self._writers.discard(writer)

    def incoming(self, group: int, index: int, term: int, size: int) -> IncomingSnapshot:
        """Begin to receive the ``size`` bytes of a peer's snapshot file."""
        path = self._temporary(group, index, term)
        info = SnapshotInfo(group, index, term, (), self._path(group, index, term), size)
        return IncomingSnapshot(self, self._fs, self._worker, path, info)

    def prune(self, group: int, keep_index: int, done: Done | None = None) -> None:
        """Remove the group's snapshots below ``keep_index``, but never its latest."""

        def work() -> None:
            latest = self._latest.get(group)
            for found, index, term in list(_parse(self._fs.listdir(self._folder))):
                if found == group and index < keep_index and latest is not None and index < latest.index:
                    self._fs.remove(self._path(group, index, term))
            self._fs.sync_dir(self._folder)

        self._worker.submit(work, lambda _, failure: done(failure) if done is not None else None)

    def discard(self, group: int, done: Done) -> None:
        """Remove all snapshots of ``group``; ``done`` when they are gone for good, or with what prevented it."""

        def work() -> None:
            self._latest.pop(group, None)
            for found, index, term in list(_parse(self._fs.listdir(self._folder))):
                if found == group:
                    self._fs.remove(self._path(group, index, term))
            self._fs.sync_dir(self._folder)

        self._worker.submit(work, lambda _, failure: done(failure))

    def publish(self, temporary: str, info: SnapshotInfo) -> SnapshotInfo:
        """In the worker: name a synced file, unless the group has one as new already. Returns the group's latest."""
        latest = self._latest.get(info.group)
        if latest is not None and latest.index >= info.index:
            self._fs.remove(temporary)
            return latest
        self._fs.rename(temporary, info.path)
        self._fs.sync_dir(self._folder)
        self._latest[info.group] = info
        return info

    def _path(self, group: int, index: int, term: int) -> str:
        return f"{self._folder}/{fmt.snapshot_name(group, index, term)}"

    def _temporary(self, group: int, index: int, term: int) -> str:
        self._temporaries += 1
        return f"{self._path(group, index, term)}.{self._temporaries}{_TEMPORARY}"


def _parse(names: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    for name in names:
        if match := fmt.NAME.fullmatch(name):
            yield int(match[1]), int(match[2]), int(match[3])


class _Unfinished:
    """A file that has no name yet. Fields are the worker's, but for ``_ended``."""

    def __init__(self, store: SnapshotStore, fs: FileSystem, worker: Worker, path: str, info: SnapshotInfo) -> None:
        self._store = store
        self._fs = fs
        self._worker = worker
        self._path = path
        self._info = info
        self._file: File | None = None
        self._unsynced = 0
        self._failure: BaseException | None = None
        self._ended = False

    def _submit(self, work: Callable[[], None], done: Done) -> None:
        self._worker.submit(lambda: self._guarded(work), lambda _, failure: done(failure))

    def _guarded(self, work: Callable[[], None]) -> None:
        """Once something failed, all that follows fails with it: a file with a gap must not be finished."""
        if self._failure is not None:
            raise self._failure
        try:
            work()
        except BaseException as error:
            self._failure = error
            raise

    def _check_open(self) -> None:
        if self._ended:
            raise StorageError(f"{self._path}: this snapshot was committed or aborted already")

    def _write(self, offset: int, data: bytes) -> None:
        if self._file is None:
            self._file = self._fs.create(self._path, 0)
        self._file.write_at(offset, data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_BYTES:
            self._file.sync()
            self._unsynced = 0

    def _seal(self) -> None:
        assert self._file is not None
        self._file.sync()
        self._file.close()

    def _commit(self, work: Callable[[], SnapshotInfo], done: Committed) -> None:
        self._check_open()
        self._ended = True
        result: list[SnapshotInfo] = []

        def ended(failure: BaseException | None) -> None:
            if failure is None:
                done(result[0], None)
            else:
                self._discard()
                done(None, failure)

        self._submit(lambda: result.append(work()), ended)

    def abort(self) -> None:
        """Remove what was written; allowed at any time, also again and after a commit, where it does nothing."""
        if not self._ended:
            self._ended = True
            self._discard()

    def _discard(self) -> None:
        def work() -> None:
            self._failure = self._failure or StorageError(f"{self._path}: this snapshot was aborted")
            if self._file is not None:
                self._file.close()
                # What stays behind after an error is removed at the next start.
                with contextlib.suppress(OSError):
                    self._fs.remove(self._path)

        self._worker.submit(work, lambda *_: None)


class SnapshotWriter(_Unfinished):
    """A snapshot of this node's own."""

    _offset = 0
    _frames = 0
    _crc = 0

    def add(self, chunks: Sequence[bytes], done: Done) -> None:
        """Append chunks; ``done(None)`` when they are written (not yet durable), ``done(exception)`` if they are not.

        Add more after that, so that few are in memory. Raises StorageError after commit or abort.
        """
        self._check_open()
        self._submit(lambda: self._append(chunks), done)

    def _append(self, chunks: Sequence[bytes]) -> None:
        self._begin()
        frames = []
        for chunk in filter(None, chunks):  # a frame of length 0 would be the footer
            frames.append(fmt.pack_frame(self._frames, chunk))
            self._frames += 1
            self._crc = crc32(chunk, self._crc)
        self._put(b"".join(frames))

    def _begin(self) -> None:
        if self._offset == 0:
            info = self._info
            self._put(fmt.pack_header(info.group, info.index, info.term, info.voters))

    def _put(self, data: bytes) -> None:
        self._write(self._offset, data)
        self._offset += len(data)

    def commit(self, done: Committed) -> None:
        """Make the snapshot durable and give it its name; ``done(info, None)``, or ``done(None, exception)``.

        ``info`` is the group's latest snapshot: a newer one if that came meanwhile; then this one is gone.
        """

        def committed(info: SnapshotInfo | None, failure: BaseException | None) -> None:
            self._store.release(self)
            done(info, failure)

        self._commit(self._finish, committed)

    def abort(self) -> None:
        super().abort()
        self._store.release(self)

    def _finish(self) -> SnapshotInfo:
        self._begin()
        self._put(fmt.pack_footer(self._frames, self._crc))
        self._seal()
        own = self._info
        return self._store.publish(
            self._path, SnapshotInfo(own.group, own.index, own.term, own.voters, own.path, self._offset)
        )


class IncomingSnapshot(_Unfinished):
    """A snapshot that a peer sends: nothing of it is trusted before all of it was verified."""

    _received = 0

    def write(self, offset: int, data: bytes, done: Done) -> None:
        """Store the next bytes. ``done(StorageError)`` if ``offset`` is not where the last ones ended, or beyond size.

        Raises StorageError after commit or abort.
        """
        self._check_open()

        def work() -> None:
            if offset != self._received or offset + len(data) > self._info.size:
                end = offset + len(data)
                raise StorageError(
                    f"{self._path}: got bytes {offset} to {end}, expected {self._received} to {self._info.size}"
                )
            self._write(offset, data)
            self._received = offset + len(data)

        self._submit(work, done)

    def commit(self, done: Committed) -> None:
        """Verify the whole file, make it durable and give it its name; the result is as with SnapshotWriter.commit.

        ``done(None, CorruptData)`` if it is not a whole snapshot of what was announced; then it is gone.
        """
        self._commit(self._finish, done)

    def _finish(self) -> SnapshotInfo:
        own = self._info
        if self._received != own.size or self._file is None:
            raise CorruptData(self._path, self._received, f"the snapshot received should have {own.size} bytes")
        self._seal()
        try:
            found = fmt.read_info(self._fs, self._path, own.group, own.index, own.term)
            for _ in fmt.read_chunks(self._fs, found):
                pass
        except CorruptData as error:
            # Without the advice for a file of this node's own: this one goes.
            problem = error.problem.removesuffix(f"; {fmt.ADVICE}")
            raise CorruptData(self._path, error.offset, f"{problem}; the received data is discarded") from None
        return self._store.publish(
            self._path, SnapshotInfo(own.group, own.index, own.term, found.voters, own.path, own.size)
        )
