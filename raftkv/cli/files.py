"""Files as the command line reads and writes them: pipes, devices, links and modes stay what they are."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STANDARD: Final = "-"
"""Stands for stdin where something is read, for stdout where something is written; ``./-`` is a file of that name."""

_DESCRIPTOR: Final = re.compile(r"/dev/fd/(\d+)|/proc/self/fd/(\d+)")
_STANDARD_FILES: Final = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_MOST_LINKS: Final = 40
"""As many as Linux follows."""


def descriptor(name: str) -> int | None:
    """The number of the open file that ``/dev/stdout``, ``/dev/fd/63`` or a link to one stands for; None if none."""
    for _ in range(_MOST_LINKS):
        if match := _DESCRIPTOR.fullmatch(name):
            return int(match[1] or match[2])
        if name in _STANDARD_FILES:
            return _STANDARD_FILES[name]
        try:
            name = os.path.join(os.path.dirname(name), os.readlink(name))  # noqa: PTH115, PTH118, PTH120
        except OSError:
            break
    return None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends; if it raises, ``path`` stays as it was.

    A crash leaves the old content or the new one, never a mixture. A link stays, and the file that it points to is
    replaced. The mode stays, the owner where this process may give files away. Other hard links keep the old content:
    no file can be changed under several names at once. Raises OSError, also for what is no regular file.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{target.name[:60]}.{secrets.token_hex(4)}.part")
    try:
        old = target.lstat()
    except FileNotFoundError:
        old = None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(target))
    # Nobody may read a private file's next content before it has the file's own mode.
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if old else 0o666)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            if old is not None:
                _keep(number, old)
            os.fsync(number)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _keep(number: int, old: os.stat_result) -> None:
    new = os.fstat(number)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with suppress(PermissionError):
            os.fchown(number, old.st_uid, old.st_gid)
    os.fchmod(number, stat.S_IMODE(old.st_mode) & 0o777)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's content such that a crash leaves the old or the new one, never a mixture. Raises OSError."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def output_file(name: str) -> Iterator[BinaryIO]:
    """The file that a command writes its data to, as a shell's ``>`` would find it, but for this:

    ``-`` is stdout, and a regular file is replaced once all is written. What is no regular file (a pipe, a device) is
    written through. Waits until somebody reads a named pipe: enter it before the event loop runs, so that Ctrl-C ends
    the waiting. Raises OSError.
    """
    number = 1 if name == STANDARD else descriptor(name)
    path = Path(name)
    if number == 1:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif number is None and (path.is_file() or not path.exists()):
        with replacing(path) as file:
            yield file
    else:
        opened = os.open(name, os.O_WRONLY | os.O_NOCTTY) if number is None else os.dup(number)
        with os.fdopen(opened, "wb") as file:
            yield file


class Watched(io.RawIOBase):
    """Shows all that is read from ``file`` to the ``watchers``, such as a hash's ``update``; closes it with itself."""

    def __init__(self, file: io.RawIOBase, *watchers: Callable[[memoryview], object]) -> None:
        super().__init__()
        self._file = file
        self._watchers = watchers

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        count = self._file.readinto(buffer)
        if count:
            for watcher in self._watchers:
                watcher(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
