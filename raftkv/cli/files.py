"""Files as the command line reads and writes them: pipes, devices, links and modes stay what they are."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from raftkv.files import replacing

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
