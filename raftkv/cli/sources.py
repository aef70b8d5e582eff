"""Where records to be loaded come from: a file, or a pipe of which a copy is kept."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from raftkv.cli.files import STANDARD, Watched, descriptor
from raftkv.cli.records import Format, Item, format_of, read_items
from raftkv.errors import InvalidArgument

_BUFFER: Final = 1024 * 1024


class Source:
    """Records that are read several times, in the same order: first to check them, then to write them.

    Reads are hashed, so a file that changes in between is noticed. What can be read only once (stdin, a pipe, a device)
    is copied to a temporary file without a name while it is checked; the disk bounds it, and it is gone when the
    process ends, so nothing can resume from it.

    ``lasts``: whether another process can read the same again, so that a load of it can be resumed.
    ``name``: for messages. ``digest``: of all bytes, once they have been read; "" before.
    """

    def __init__(self, name: str, kind: Format | None, key_column: str, value_column: str) -> None:
        """``name``: a path, or ``-`` for stdin. Raises InvalidArgument if there is nothing, or no format for it."""
        self.name = "stdin" if name == STANDARD else name
        self._number = 0 if name == STANDARD else descriptor(name)
        try:
            self.lasts = self._number is None and stat.S_ISREG(Path(name).stat().st_mode)
        except OSError as error:
            raise self._unreadable(error) from None
        self.path = Path(name)
        self.kind: Format = kind or format_of(self.path, None if self.lasts else "jsonl")
        self.key_column = key_column
        self.value_column = value_column
        self.digest = ""
        self._copy: io.FileIO | None = None

    def items(self) -> Iterator[Item]:
        """All records. Waits for a pipe's writer: let the event loop run only once the first reading is over.

        Raises InvalidArgument that names the line of the first damage, or if it is not what was read before.
        """
        digest = hashlib.blake2b(digest_size=16)
        try:
            with io.BufferedReader(self._open(digest), _BUFFER) as file:
                yield from read_items(file, self.name, self.kind, self.key_column, self.value_column)
        except OSError as error:
            raise self._unreadable(error) from None
        except InvalidArgument as error:
            raise self._changed(error) if self.digest else error from None
        if self.digest not in ("", digest.hexdigest()):
            raise self._changed()
        self.digest = digest.hexdigest()

    def close(self) -> None:
        """Remove the copy, if there is one."""
        if self._copy is not None:
            self._copy.close()

    def _open(self, digest: hashlib.blake2b) -> Watched:
        if self.lasts:
            return Watched(self.path.open("rb", buffering=0), digest.update)
        if self._copy is not None:
            self._copy.seek(0)
            return Watched(io.FileIO(os.dup(self._copy.fileno()), "rb"), digest.update)
        own = self._number is None
        stream = io.FileIO(self.path if self._number is None else self._number, "rb", closefd=own)
        self._copy = tempfile.TemporaryFile(prefix="raftkv-", buffering=0)  # noqa: SIM115 - read again later
        return Watched(stream, digest.update, self._keep)

    def _keep(self, data: memoryview) -> None:
        assert self._copy is not None
        try:
            while data:
                data = data[self._copy.write(data) :]
        except OSError as error:
            where = f"{tempfile.gettempdir()} (TMPDIR names another folder)"
            raise InvalidArgument(f"{self.name}: cannot keep a copy of it in {where}: {error.strerror}") from None

    def _unreadable(self, error: OSError) -> InvalidArgument:
        return InvalidArgument(f"{self.name}: cannot read it: {error.strerror or error}")

    def _changed(self, error: InvalidArgument | None = None) -> InvalidArgument:
        seen = f" (now {error})" if error else ""
        return InvalidArgument(f"{self.name}: changed while it was loaded{seen}; load it again once it is complete")
