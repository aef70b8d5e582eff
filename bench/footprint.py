"""What a node takes of memory and of disk, and when it took snapshots, as seen from outside."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_TAKEN = re.compile(r"^(\S+ \S+) I node \d+ \S+: group (\d+): snapshot of entry \d+ took ([\d.]+) s", re.MULTILINE)
_SEGMENT = re.compile(r"wal-(\d+)\.log")
_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot of a group on one node: from when to when, as Unix times in seconds."""

    group: int
    began: float
    ended: float


def memory(pid: int) -> int:
    """Bytes of memory of a process; what it shares with others counts by its share (PSS)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def snapshots(log: Path, start: int = 0) -> list[Taken]:
    """The snapshots that a node's log tells of, from byte ``start`` on."""
    found = []
    for when, group, took in _TAKEN.findall(log.read_bytes()[start:].decode(errors="replace")):
        ended = datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
        found.append(Taken(int(group), ended - float(took), ended))
    return found


def written(wal: Path) -> int:
    """Bytes that a log in the folder ``wal`` has taken in since it was made, also those of segments that are gone."""
    segments = {int(match[1]): path for path in wal.iterdir() if (match := _SEGMENT.fullmatch(path.name))}
    last = segments[max(segments)]
    # Segments are made full of zeros, and all had the same size unless a batch was larger than one.
    return (max(segments) - 1) * last.stat().st_size + _used(last)


def _used(path: Path) -> int:
    """Where the zeros begin with which a file ends."""
    with path.open("rb") as file:
        end = path.stat().st_size
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            block = file.read(end - start).rstrip(b"\0")
            if block:
                return start + len(block)
            end = start
    return 0


def on_disk(folder: Path) -> int:
    """Bytes of all files below ``folder``; those that vanish meanwhile count as gone."""
    return sum(_sizes(folder.rglob("*")))


def _sizes(paths: Iterable[Path]) -> Iterable[int]:
    for path in paths:
        try:
            if path.is_file():
                yield path.stat().st_size
        except FileNotFoundError:
            continue
