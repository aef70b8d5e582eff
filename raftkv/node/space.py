"""Free disk space and memory of a node, what they mean for its groups, and what other nodes are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from raftkv.api.status import Problem
from raftkv.node.memory import Memory
from raftkv.node.replicas import Replicas
from raftkv.node.room import Full, Room
from raftkv.storage.wal import Wal

_FULL_BELOW: Final = 4
_FREE_ABOVE: Final = 8
"""Free WAL segments at which the disk counts as full, and at which it has room again."""


class Space:
    """``free_space`` tells the bytes that are left for the data folder; ``segment_bytes``: size of a WAL segment."""

    def __init__(
        self,
        room: Room,
        memory: Memory,
        replicas: Replicas,
        wal: Wal,
        free_space: Callable[[], int],
        segment_bytes: int,
    ) -> None:
        self._room = room
        self._memory = memory
        self._replicas = replicas
        self._wal = wal
        self._free_space = free_space
        self._segment_bytes = segment_bytes
        self.free = -1
        """Bytes left on the disk as of the last look, -1 before the first."""

    def look_at_memory(self) -> None:
        """Called about once a second."""
        self._memory.look()
        if self._memory.full:
            self._replicas.shorten_logs()

    def look(self) -> dict[int, str]:
        """Look at the disk and tell the other nodes. Returns the groups led here that take no new data, and why."""
        self.free = self._free_space()
        full = self.free < self._segment_bytes * (_FREE_ABOVE if self._room.here.disk else _FULL_BELOW)
        self._room.look(Full(disk=full, memory=self._memory.full))
        # A log that grows no further leaves what makes a full disk one with room.
        self._replicas.reclaim(self.free - _FREE_ABOVE * self._segment_bytes)
        refusals = {group.group: self._room.refusal(group) for group in self._replicas.all() if group.leads()}
        return {group: why for group, why in refusals.items() if why}

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the disk and the memory."""
        yield from self._memory.problems()
        lacking = [group.group for group in self._replicas.all() if group.snapshots.lacks]
        waiting = self._wal.waiting
        if not (self._room.here.disk or lacking or waiting):
            return
        told = [f"{self.free:,} bytes are free on its disk"]
        if self._room.here.disk:
            told.append("it gives leaderships away, and new data is refused where no majority has room")
        if lacking:
            told.append(f"no room for a snapshot of group {', '.join(map(str, lacking))}")
        if waiting is not None:
            told.append(f"its log waits, it acknowledges nothing: {waiting.strerror}")
        yield Problem("disk_full", "; ".join(told))
