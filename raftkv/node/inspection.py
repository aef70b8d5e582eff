"""What operators look at in the replicas of a node: stats of slots, digests, whole states."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from raftkv import limits
from raftkv.api.status import Digests, SlotStats
from raftkv.clock import Clock
from raftkv.errors import Code, Overloaded, Unavailable
from raftkv.node.replicas import Replicas
from raftkv.raft.ports import Snapshot

_SLICE: Final = 0.002
"""Seconds of a tick for all digests; one piece of work is done at least."""


@dataclass(slots=True, eq=False)
class _Reading:
    """A state that somebody reads. ``asked``: when for the latest chunk."""

    snapshot: Snapshot
    asked: float


class Inspection:
    """Looks at the replicas of one node."""

    def __init__(self, replicas: Replicas, clock: Clock) -> None:
        self._replicas = replicas
        self._clock = clock
        self._readings: set[_Reading] = set()

    def run(self) -> None:
        """Do a little of the digests that were asked for, end reads that stand. Called every few milliseconds."""
        for reading in [one for one in self._readings if self._clock.now() - one.asked > limits.SNAPSHOT_READ_IDLE]:
            self._end(reading)
        until = self._clock.now() + _SLICE
        for replica in self._replicas.data.values():
            for check in replica.store.checks.values():
                while check.result() is None:
                    check.step()
                    if self._clock.now() >= until:
                        return

    def slot_stats(self) -> list[SlotStats]:
        """Of all slots of the groups that this node leads."""
        return [
            SlotStats(slot, group, keys, size, operations)
            for group, replica in sorted(self._replicas.data.items())
            if replica.group.leads()
            for slot, keys, size, operations in replica.store.slot_stats()
        ]

    def digests(self, group: int, check: int) -> Digests | None:
        """What a check has found, None if it has not (yet)."""
        replica = self._replicas.data.get(group)
        found = None if replica is None else replica.store.checks.get(check)
        result = None if found is None else found.result()
        return None if result is None else Digests(*result)

    async def read_snapshot(self, group: int) -> AsyncIterator[bytes]:
        """The chunks of a group's state, read as a linearizable read at its leader.

        Raises Unavailable, also if no chunk was asked for in SNAPSHOT_READ_IDLE; Overloaded if too many are read.
        """
        replica = self._replicas.get(group)
        if replica is None:
            raise Unavailable(f"this node has no replica of group {group}")
        allowed: asyncio.Future[Code] = asyncio.get_running_loop().create_future()

        def done(code: Code) -> None:
            if not allowed.done():
                allowed.set_result(code)

        replica.read(True, done)
        if await allowed != Code.OK:
            raise Unavailable(f"this node does not lead group {group}")
        if len(self._readings) >= limits.MAX_SNAPSHOT_READS:
            raise Overloaded(f"the states of {len(self._readings)} groups are being read from this node already")
        reading = _Reading(replica.machine.snapshot(), self._clock.now())
        self._readings.add(reading)
        try:
            for chunk in reading.snapshot.chunks():
                yield chunk
                reading.asked = self._clock.now()
                await asyncio.sleep(0)
            if reading not in self._readings:
                raise Unavailable(f"no chunk was asked for in {limits.SNAPSHOT_READ_IDLE} s")
        finally:
            self._end(reading)

    def _end(self, reading: _Reading) -> None:
        self._readings.discard(reading)
        reading.snapshot.close()
