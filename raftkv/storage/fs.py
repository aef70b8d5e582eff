"""Ports to files and to blocking work, and their real implementations.

This is the only module of raftkv that touches files. Everything else takes a :class:`FileSystem` and a
:class:`Worker`, so that a simulator can supply a disk that loses power. Paths are strings with ``/``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

from raftkv.errors import DataFolderInUse

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

_ZEROS: Final = bytes(1024 * 1024)

_PATIENCE: Final = 60.0
_PAUSE: Final = 0.05
"""Seconds for which a worker waits for a file descriptor that the process or the machine lacks, and between two looks.
Nothing was written then, so nothing is in doubt."""


class File(Protocol):
    """An open file. Every method may raise OSError, which names the file."""

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of ``data`` at byte ``offset``, growing the file if needed."""

    def sync(self) -> None:
        """Make what was written durable (fdatasync). After an error nothing is known: never call it again."""

    def write_durably(self, offset: int, data: Buffer) -> None:
        """``write_at`` and ``sync`` in one step."""

    def close(self) -> None:
        """Close without syncing; closing twice is allowed."""


class Lock(Protocol):
    """An exclusive lock that ends with the process."""

    def release(self) -> None: ...


class FileSystem(Protocol):
    """Files and folders. Every method may raise OSError. Changes of names are durable only after ``sync_dir``."""

    def listdir(self, path: str) -> list[str]:
        """Names in a folder, sorted."""

    def exists(self, path: str) -> bool: ...

    def makedirs(self, path: str) -> None:
        """Create a folder and its parents where missing; durable on return."""

    def size(self, path: str) -> int:
        """Size of a file in bytes."""

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only at the end of the file."""

    def create(self, path: str, size: int) -> File:
        """New file of ``size`` zero bytes, written and synced, so that overwriting them changes no metadata.

        Raises FileExistsError if the name is taken. Leaves nothing behind if it fails.
        """

    def open(self, path: str) -> File:
        """Existing file, for writing."""

    def rename(self, old: str, new: str) -> None:
        """Atomic; replaces ``new``."""

    def remove(self, path: str) -> None: ...

    def sync_dir(self, path: str) -> None:
        """Make creations, renames and removals in the folder durable."""

    def lock(self, path: str) -> Lock:
        """Lock a file, creating it if needed. Raises errors.DataFolderInUse if another process has it."""

    def free_space(self, path: str) -> int:
        """Bytes that may still be written to the file system that holds ``path``."""


class Worker(Protocol):
    """Runs blocking work in order of submission, off the loop."""

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Run ``work``; then, in the loop, call ``done(result, None)`` or ``done(None, exception)`` exactly once."""


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def _patiently(call: Callable[[], T]) -> T:
    """``call``, again while it lacks a descriptor; but a worker waits, the event loop does not."""
    looks = 1 if _in_loop() else round(_PATIENCE / _PAUSE)
    while True:
        try:
            return call()
        except OSError as error:
            looks -= 1
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not looks:
                raise
        threading.Event().wait(_PAUSE)


def _open(path: str, flags: int) -> int:
    return _patiently(lambda: os.open(path, flags, 0o600))


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _OsFile:
    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def write_at(self, offset: int, data: Buffer) -> None:
        with _naming(self._path):
            written = os.pwrite(self._descriptor, data, offset)
            if written < len(data):
                rest = memoryview(data).cast("B")
                while written < len(rest):
                    written += os.pwrite(self._descriptor, rest[written:], offset + written)

    def sync(self) -> None:
        with _naming(self._path):
            _fdatasync(self._descriptor)

    def write_durably(self, offset: int, data: Buffer) -> None:
        # One system call instead of two: a worker thread gives the interpreter up and takes it back only once.
        if _DSYNC is not None:
            try:
                if os.pwritev(self._descriptor, (data,), offset, _DSYNC) == len(data):
                    return
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    error.filename = self._path
                    raise
        self.write_at(offset, data)
        self.sync()

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


# macOS has no fdatasync, and its fsync leaves data in the drive's cache.
_FULLFSYNC: Final[int | None] = getattr(fcntl, "F_FULLFSYNC", None)


_DSYNC: Final[int | None] = getattr(os, "RWF_DSYNC", None)


def _fdatasync(descriptor: int) -> None:
    if _FULLFSYNC is not None:
        fcntl.fcntl(descriptor, _FULLFSYNC)
    else:
        os.fdatasync(descriptor)


class _OsLock:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class OsFileSystem:
    """The machine's files."""

    def listdir(self, path: str) -> list[str]:
        return sorted(_patiently(lambda: os.listdir(path)))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def makedirs(self, path: str) -> None:
        missing = []
        folder = os.path.abspath(path)
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
            self.sync_dir(os.path.dirname(folder))

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def read(self, path: str, offset: int, size: int) -> bytes:
        descriptor = _open(path, os.O_RDONLY)
        try:
            with _naming(path):
                data = os.pread(descriptor, size, offset)
                if len(data) == size:
                    return data
                parts = [data]
                have = len(data)
                while data and have < size:
                    data = os.pread(descriptor, size - have, offset + have)
                    have += len(data)
                    parts.append(data)
                return b"".join(parts)
        finally:
            os.close(descriptor)

    def create(self, path: str, size: int) -> File:
        file = _OsFile(path, _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        try:
            for offset in range(0, size, len(_ZEROS)):
                file.write_at(offset, _ZEROS if size - offset >= len(_ZEROS) else _ZEROS[: size - offset])
            file.sync()
        except BaseException:
            file.close()
            os.unlink(path)
            raise
        return file

    def open(self, path: str) -> File:
        return _OsFile(path, _open(path, os.O_RDWR))

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def sync_dir(self, path: str) -> None:
        descriptor = _open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with _naming(path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: str) -> Lock:
        descriptor = _open(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DataFolderInUse(f"{path}: another process uses this data folder; stop it first") from None
        except BaseException:
            os.close(descriptor)
            raise
        return _OsLock(descriptor)

    def free_space(self, path: str) -> int:
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize


class ThreadWorker:
    """One daemon thread. Work runs there, ``done`` in ``loop``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "raftkv-worker") -> None:
        self._loop = loop
        self._closed = False
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]] | None]
        self._jobs = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """See :class:`Worker`. Raises RuntimeError after :meth:`close`."""
        if self._closed:
            raise RuntimeError("this worker is closed")
        self._jobs.put((work, done))

    def close(self) -> None:
        """Finish what was submitted and end the thread; blocks meanwhile. Callbacks still run in the loop."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, done = job
            result: Any = None
            failure: BaseException | None = None
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 (it is handed to the loop)
                failure = error
            # The loop may have been closed under us while the process ends; nobody is left to be told.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(done, result, failure)
            del job, work, done, result, failure
