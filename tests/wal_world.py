"""A write-ahead log on a simulated disk, for tests of it."""

from __future__ import annotations

from faults.sim.disk import SimDisk
from faults.sim.worker import SimWorker
from raftkv.storage.wal import GroupState, Wal

SMALL = 1024


class Node:
    """A WAL on a simulated disk; ``restart`` is kill -9 and a new start."""

    def __init__(self, segment_bytes: int = 1 << 16, inline: bool = True) -> None:
        self.disk = SimDisk()
        self.segment_bytes = segment_bytes
        self.inline = inline
        self.failures: list[BaseException] = []
        self.start()

    def start(self, must_exist: bool = False) -> Wal:
        self.worker = SimWorker(self.inline)
        self.background = SimWorker(self.inline)
        self.announced: list[int] = []
        self.wal = Wal.open(
            self.disk.mount(),
            self.worker,
            "n/wal",
            self.failures.append,
            background=self.background,
            identity=b"node",
            segment_bytes=self.segment_bytes,
            must_exist=must_exist,
        )
        self.wal.on_durable.append(self.announced.append)
        return self.wal

    def restart(self) -> dict[int, GroupState]:
        self.disk.kill()
        return self.start().recovered

    def segments(self) -> list[str]:
        return [path for path in self.disk.files() if path.endswith(".log")]


def command(index: int, size: int = 100) -> bytes:
    return f"command {index} ".encode().ljust(size, b".")


def fill(wal: Wal, group: int, first: int, last: int, size: int = 100) -> None:
    for index in range(first, last + 1):
        wal.entry(group, index, 1, command(index, size))
        wal.flush()
