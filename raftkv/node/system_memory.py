"""The memory of this process, as the operating system and the C library tell it and take it back."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")
_STATM: Final = Path("/proc/self/statm")


class SystemMemory:
    """See :class:`raftkv.node.memory.ProcessMemory`. Without /proc nothing is known, and so nothing refused."""

    def __init__(self) -> None:
        self._trim = _malloc_trim()
        self._page = os.sysconf("SC_PAGE_SIZE")

    def total(self) -> int:
        machine = os.sysconf("SC_PHYS_PAGES") * self._page
        return min([machine, *_cgroup_limits(_OWN_CGROUPS, _CGROUPS)])

    def used(self) -> int:
        try:
            return int(_STATM.read_bytes().split()[1]) * self._page
        except OSError:
            return 0

    def release(self) -> None:
        if self._trim is not None:
            self._trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    """glibc keeps what was freed between things that live on, until it is asked; other C libraries do not have this."""
    try:
        trim = ctypes.CDLL(None).malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None
    if trim is not None:
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim


def _cgroup_limits(own: Path, root: Path) -> Iterator[int]:
    """The limits in bytes of the cgroups that this process is in, version 1 or 2, and of those around them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's, and the container's own group at the top.
        inner = Path(path.strip("/"))
        for folder in (inner, *inner.parents):
            try:
                limit = (top / folder / name).read_text().strip()
            except OSError:
                continue
            if limit.isdigit():
                yield int(limit)
