"""A disk in memory that loses power, fills up, fails and rots on demand.

The model is the harshest that POSIX allows: of what was not synced, any part may survive a power loss, each write torn
at any byte; names need ``sync_dir``; a failed sync leaves data readable that is not on disk and never will be.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from raftkv.errors import DataFolderInUse, RaftKVError
from raftkv.storage.fs import Buffer


class PowerLoss(BaseException):
    """The machine has lost power. Not an Exception: no handler of the code under test may survive it."""


def of_system(problem: BaseException | None) -> bool:
    """Whether a file or a connection has raised it; some of raftkv's own errors are OSErrors too."""
    return isinstance(problem, OSError) and not isinstance(problem, RaftKVError)


def _put(image: bytearray, offset: int, data: Buffer) -> None:
    if offset > len(image):
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


@dataclass(eq=False, slots=True)
class _Inode:
    """``view`` is what reads see, ``disk`` what is on disk, ``pending`` the writes that may get there."""

    view: bytearray = field(default_factory=bytearray)
    disk: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def write(self, offset: int, data: Buffer) -> None:
        _put(self.view, offset, data)
        self.pending.append((offset, bytes(data)))

    def sync(self) -> None:
        for offset, data in self.pending:
            _put(self.disk, offset, data)
        self.pending.clear()

    def lose_power(self, survivor: Callable[[int], tuple[int, int]]) -> None:
        for offset, data in self.pending:
            first, end = survivor(len(data))
            if first < end:
                _put(self.disk, offset + first, data[first:end])
        self.pending.clear()
        self.view = bytearray(self.disk)


@dataclass(frozen=True, slots=True)
class _NameChange:
    """An unsynced change of a folder: ``gone`` ceases to be a name, ``name`` becomes one of ``inode``."""

    folder: str
    inode: _Inode
    name: str | None = None
    gone: str | None = None

    def apply(self, names: dict[str, _Inode]) -> None:
        if self.gone is not None and names.get(self.gone) is self.inode:
            del names[self.gone]
        if self.name is not None:
            names[self.name] = self.inode


class SimDisk:
    """The disk of one machine. :meth:`mount` gives the file system that works until :meth:`crash` or :meth:`kill`."""

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.capacity = capacity
        """Bytes; change it to fill the disk up or to make room."""
        self.operations = 0
        """Changing operations begun so far."""
        self.before_sync: Callable[[str], None] | None = None
        """Called with the path before each sync of a file or folder; an OSError raised by it fails the sync."""
        self.failed_syncs: list[str] = []
        """Paths whose sync has failed."""
        self._boot = 0
        self._power_off_at: int | None = None
        self._folders: set[str] = set()
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._changes: list[_NameChange] = []
        self._locks: set[str] = set()

    def mount(self) -> SimFileSystem:
        return SimFileSystem(self, self._boot)

    # Faults.

    def kill(self) -> None:
        """The process dies, the machine lives: everything written stays, files and locks are let go."""
        self._boot += 1
        self._power_off_at = None
        self._locks.clear()

    def power_off_after(self, operations: int) -> None:
        """Raise PowerLoss instead of the changing operation that comes after so many more, and in all later ones."""
        self._power_off_at = self.operations + operations

    def power_stays(self) -> None:
        """Take :meth:`power_off_after` back."""
        self._power_off_at = None

    def crash(self, rng: random.Random) -> None:
        """Power loss: each unsynced write survives whole, torn or not at all, each unsynced change of names or not."""

        def survivor(length: int) -> tuple[int, int]:
            cut = rng.randint(0, length)
            return rng.choice(((0, length), (0, 0), (0, cut), (cut, length)))

        self._lose_power(survivor, lambda: rng.random() < 0.5)

    def crash_keeping(self, size: int, names: bool = True) -> None:
        """Power loss that keeps the first ``size`` unsynced bytes, and all unsynced changes of names or none."""
        left = size

        def survivor(length: int) -> tuple[int, int]:
            nonlocal left
            kept = min(left, length)
            left -= kept
            return 0, kept

        self._lose_power(survivor, lambda: names)

    def _lose_power(self, survivor: Callable[[int], tuple[int, int]], keeps: Callable[[], bool]) -> None:
        for inode in self._inodes():
            inode.lose_power(survivor)
        stopped: set[int] = set()
        for change in self._changes:
            # Changes that concern one file keep their order; those of different files are independent.
            if id(change.inode) in stopped or not keeps():
                stopped.add(id(change.inode))
            else:
                change.apply(self._durable_names)
        self._changes.clear()
        self._names = dict(self._durable_names)
        self.kill()

    def fail_syncs(self, path: str = "", code: int = errno.EIO, *, once: bool = False) -> None:
        """From now on syncs of paths that contain ``path`` fail, or the next one; ``before_sync = None`` ends it."""

        def fail(synced: str) -> None:
            if path in synced:
                self.failed_syncs.append(synced)
                if once:
                    self.before_sync = None
                raise OSError(code, os.strerror(code), synced)

        self.before_sync = fail

    def flip(self, path: str, offset: int, mask: int = 1) -> None:
        """Flip bits of one stored byte."""
        inode = self._names[path]
        for image in (inode.view, inode.disk):
            image[offset] ^= mask

    def replace(self, path: str, data: bytes) -> None:
        """Give a file other contents, as if it had always been so."""
        self._forget_changes(path)
        self._names[path] = self._durable_names[path] = _Inode(bytearray(data), bytearray(data))

    def delete(self, path: str) -> None:
        """Make a file as if it had never been."""
        self._forget_changes(path)
        del self._names[path]
        self._durable_names.pop(path, None)

    def _forget_changes(self, path: str) -> None:
        self._changes = [change for change in self._changes if path not in (change.name, change.gone)]

    # What is there.

    def files(self) -> dict[str, bytes]:
        """Path and contents of every file, as reads see them."""
        return {path: bytes(inode.view) for path, inode in sorted(self._names.items())}

    def used(self) -> int:
        """Bytes in all files."""
        return sum(len(inode.view) for inode in self._names.values())

    def unsynced_bytes(self) -> int:
        """Bytes written to files and not synced."""
        return sum(len(data) for inode in self._inodes() for _, data in inode.pending)

    def unsynced_names(self, folder: str) -> bool:
        """Whether names in ``folder`` have come or gone that a power loss may undo."""
        return any(change.folder == folder for change in self._changes)

    def copy(self) -> SimDisk:
        """A disk in the same state, to try several fates from there."""
        other = SimDisk(self.capacity)
        twins = {id(i): _Inode(bytearray(i.view), bytearray(i.disk), list(i.pending)) for i in self._inodes()}
        other._folders = set(self._folders)
        other._names = {name: twins[id(inode)] for name, inode in self._names.items()}
        other._durable_names = {name: twins[id(inode)] for name, inode in self._durable_names.items()}
        other._changes = [_NameChange(c.folder, twins[id(c.inode)], c.name, c.gone) for c in self._changes]
        return other

    def _inodes(self) -> list[_Inode]:
        found = (*self._names.values(), *self._durable_names.values(), *(change.inode for change in self._changes))
        return list({id(inode): inode for inode in found}.values())

    # For SimFileSystem and SimFile.

    def check_power(self, boot: int) -> None:
        if boot != self._boot or (self._power_off_at is not None and self.operations > self._power_off_at):
            raise PowerLoss

    def begin_change(self, boot: int) -> None:
        self.check_power(boot)
        self.operations += 1
        self.check_power(boot)

    def take_space(self, path: str, size: int) -> None:
        if size > 0 and self.used() + size > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def sync_file(self, inode: _Inode) -> None:
        path = next((name for name, known in self._names.items() if known is inode), "")
        try:
            if self.before_sync is not None:
                self.before_sync(path)
        except OSError:
            # The kernel marks what it could not write as clean: still readable, and the next sync reports success.
            inode.pending.clear()
            raise
        inode.sync()

    def sync_folder(self, folder: str) -> None:
        if self.before_sync is not None:
            self.before_sync(folder)
        later = []
        for change in self._changes:
            if change.folder == folder:
                change.apply(self._durable_names)
            else:
                later.append(change)
        self._changes = later

    def change_name(self, change: _NameChange) -> None:
        change.apply(self._names)
        self._changes.append(change)

    def find(self, path: str) -> _Inode:
        inode = self._names.get(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return inode

    @property
    def names(self) -> dict[str, _Inode]:
        return self._names

    @property
    def folders(self) -> set[str]:
        return self._folders

    @property
    def locks(self) -> set[str]:
        return self._locks


class SimFile:
    """See :class:`raftkv.storage.fs.File`."""

    def __init__(self, disk: SimDisk, boot: int, path: str, inode: _Inode) -> None:
        self._disk = disk
        self._boot = boot
        self._path = path
        self._inode = inode
        self._closed = False

    def write_at(self, offset: int, data: Buffer) -> None:
        self._begin()
        self._disk.take_space(self._path, offset + len(data) - len(self._inode.view))
        self._inode.write(offset, data)

    def sync(self) -> None:
        self._begin()
        self._disk.sync_file(self._inode)

    def write_durably(self, offset: int, data: Buffer) -> None:
        self.write_at(offset, data)
        self.sync()

    def close(self) -> None:
        self._closed = True

    def _begin(self) -> None:
        self._disk.begin_change(self._boot)
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._path)


class SimLock:
    """See :class:`raftkv.storage.fs.Lock`."""

    def __init__(self, locks: set[str], path: str) -> None:
        self._locks = locks
        self._path = path

    def release(self) -> None:
        self._locks.discard(self._path)


class SimFileSystem:
    """See :class:`raftkv.storage.fs.FileSystem`. After a crash or kill of the disk everything raises PowerLoss."""

    def __init__(self, disk: SimDisk, boot: int) -> None:
        self._disk = disk
        self._boot = boot

    def listdir(self, path: str) -> list[str]:
        self._disk.check_power(self._boot)
        if path not in self._disk.folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        prefix = f"{path}/"
        return sorted({name[len(prefix) :].split("/")[0] for name in self._everything() if name.startswith(prefix)})

    def _everything(self) -> list[str]:
        return [*self._disk.names, *self._disk.folders]

    def exists(self, path: str) -> bool:
        self._disk.check_power(self._boot)
        return path in self._disk.names or path in self._disk.folders

    def makedirs(self, path: str) -> None:
        if path not in self._disk.folders:
            self._disk.begin_change(self._boot)
            while path:
                self._disk.folders.add(path)
                path = path.rpartition("/")[0]

    def size(self, path: str) -> int:
        self._disk.check_power(self._boot)
        return len(self._disk.find(path).view)

    def read(self, path: str, offset: int, size: int) -> bytes:
        self._disk.check_power(self._boot)
        return bytes(memoryview(self._disk.find(path).view)[offset : offset + size])

    def create(self, path: str, size: int) -> SimFile:
        self._disk.begin_change(self._boot)
        folder = _folder(path)
        if path in self._disk.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if folder not in self._disk.folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._disk.take_space(path, size)
        inode = _Inode(bytearray(size), bytearray(size))
        self._disk.change_name(_NameChange(folder, inode, name=path))
        return SimFile(self._disk, self._boot, path, inode)

    def open(self, path: str) -> SimFile:
        self._disk.check_power(self._boot)
        return SimFile(self._disk, self._boot, path, self._disk.find(path))

    def rename(self, old: str, new: str) -> None:
        self._disk.begin_change(self._boot)
        assert _folder(old) == _folder(new), "renames between folders are not modelled"
        self._disk.change_name(_NameChange(_folder(old), self._disk.find(old), name=new, gone=old))

    def remove(self, path: str) -> None:
        self._disk.begin_change(self._boot)
        self._disk.change_name(_NameChange(_folder(path), self._disk.find(path), gone=path))

    def sync_dir(self, path: str) -> None:
        self._disk.begin_change(self._boot)
        self._disk.sync_folder(path)

    def lock(self, path: str) -> SimLock:
        self._disk.begin_change(self._boot)
        if path in self._disk.locks:
            raise DataFolderInUse(f"{path}: another process uses this data folder; stop it first")
        self._disk.locks.add(path)
        return SimLock(self._disk.locks, path)

    def free_space(self, path: str) -> int:
        self._disk.check_power(self._boot)
        return max(0, self._disk.capacity - self._disk.used())


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
