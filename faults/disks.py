"""Disks that are slow or full: a small library is laid between a node and the C library, and told through a file."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from raftkv.errors import RaftKVError

_SOURCE: Final = Path(__file__).with_name("sick_disk.c")
_CACHE: Final = Path(__file__).resolve().parents[1] / ".cache" / "sick-disk"
_FILE: Final = "sick-disk"
_NUMBERS: Final = struct.Struct("=iiii")
_COMPILE: Final = 60.0


class NoSickDisks(RaftKVError):
    """This machine cannot make disks slow or full; the message says why."""


def library() -> Path:
    """The compiled library. Raises NoSickDisks."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not sys.platform.startswith("linux"):
        raise NoSickDisks("slow and full disks need Linux")
    name = f"{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]}.so"
    built = _CACHE / name
    if built.exists():
        return built
    if compiler is None:
        raise NoSickDisks("slow and full disks need a C compiler")
    _CACHE.mkdir(parents=True, exist_ok=True)
    # Others may be at it too.
    fresh = built.with_suffix(f".{os.getpid()}")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(fresh), str(_SOURCE), "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise NoSickDisks(f"the library for sick disks cannot be compiled: {problem}") from None
    if done.returncode:
        raise NoSickDisks(f"the library for sick disks cannot be compiled: {done.stderr.strip()[-300:]}")
    fresh.replace(built)
    return built


class SickDisk:
    """What the node that works in ``folder`` is told of its disk, and what came of it; made before the node starts."""

    def __init__(self, folder: Path) -> None:
        path = folder / _FILE
        path.write_bytes(bytes(_NUMBERS.size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _NUMBERS.size)

    def tell(self, *, delay: float = 0.0, full: bool = False) -> None:
        """``delay``: seconds that each sync takes longer. The counts begin anew."""
        self._shared[:] = _NUMBERS.pack(round(1000 * delay), int(full), 0, 0)

    @property
    def delayed(self) -> int:
        """Syncs that took longer."""
        return self._read()[2]

    @property
    def refused(self) -> int:
        """Requests for room that were refused, and questions for room that were answered with none."""
        return self._read()[3]

    def close(self) -> None:
        """Let go of the file."""
        self._shared.close()

    def _read(self) -> Sequence[int]:
        return _NUMBERS.unpack(self._shared[:])
