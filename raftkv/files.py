"""Files that are replaced whole: a crash leaves the old content or the new one."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends; if it raises, ``path`` stays as it was.

    A crash leaves the old content or the new one, never a mixture. A link stays, and the file that it points to is
    replaced. The mode stays, the owner where this process may give files away; ``private``: nobody but the owner may
    read it, whatever it was before. Other hard links keep the old content: no file can be changed under several names
    at once. Raises OSError, also for what is no regular file.
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
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if old or private else 0o666)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            if old is not None:
                _keep(number, old, private)
            os.fsync(number)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_private(path: Path, text: str) -> None:
    """:func:`write_atomically`, and nobody but the owner may read the file. Raises OSError."""
    with replacing(path, private=True) as file:
        file.write(text.encode())


def _keep(number: int, old: os.stat_result, private: bool) -> None:
    new = os.fstat(number)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with suppress(PermissionError):
            os.fchown(number, old.st_uid, old.st_gid)
    os.fchmod(number, stat.S_IMODE(old.st_mode) & (0o600 if private else 0o777))


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's content such that a crash leaves the old or the new one, never a mixture. Raises OSError."""
    with replacing(path) as file:
        file.write(text.encode())
