"""Operations without end: from some streams, from many connections, and to a group that has no majority."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from faults.abuse.stage import AbuseScenario, Stage

_BEGUN: Final = 30.0
_WITHOUT_LEADER: Final = 3.0
"""Seconds, longer than any election: who leads a group without a majority has stepped down."""


def overloaded(counts: Mapping[str, Any]) -> float:
    """Part of the answers that were looked at, in percent."""
    codes: Mapping[str, int] = counts.get("codes", {})
    return 100.0 * codes.get("OVERLOADED", 0) / max(1, sum(codes.values()))


class _Flood(AbuseScenario):
    streams: ClassVar[tuple[int, int]]
    """In full, in short."""
    operations: ClassVar[int]

    async def run(self, stage: Stage) -> None:
        streams = self.size(*self.streams)
        async with stage.watched(), stage.beside():
            async with stage.abused(
                "flood", addresses=stage.addresses(), streams=streams, operations=self.operations, timeout=5.0
            ) as abuser:
                await abuser.until(lambda counts: counts.get("answered"), _BEGUN)
                await asyncio.sleep(self.size(15, 3))
                if not self.short:
                    await stage.note_health("meanwhile")
            counts = abuser.counts
        stage.note("streams", streams)
        stage.note("operations of the flood that were answered", counts.get("answered", 0), least=1)
        stage.note("of these Overloaded", overloaded(counts), "%")
        stage.note("streams that were refused", counts.get("refused", 0))


class FloodingStreams(_Flood):
    name = "flooding-streams"
    what = "18 streams on connections of their own write as fast as they are let, 4,000 small puts a message"
    streams = (18, 6)
    operations = 4000


class ManyConnections(_Flood):
    name = "many-connections"
    what = "150 connections write as fast as they are let, 100 small puts a message"
    streams = (150, 30)
    operations = 100


class DeadGroup(AbuseScenario):
    name = "dead-group"
    what = "2 of 5 nodes stop; 24,000 writes to a group that has lost its majority, through a node that lives"
    nodes = 5
    groups = 5

    async def run(self, stage: Stage) -> None:
        tags = await stage.tags()
        voters = {group.id: set(group.voters) for group in (await stage.map()).groups}
        # A pair of nodes that takes the majority of one group, and leaves that of others.
        pairs = [{a, b} for a in stage.cluster.nodes for b in stage.cluster.nodes if a < b]
        stopped = max(pairs, key=lambda pair: (self._dead(pair, voters, tags) == 1, -self._dead(pair, voters, tags)))
        dead = [group for group in tags if len(voters[group] & stopped) == 2]
        healthy = [tag for group, tag in tags.items() if group not in dead]
        killed, paused = sorted(stopped)
        await asyncio.to_thread(stage.cluster.kill, killed)
        stage.cluster.pause(paused)
        through = stage.cluster.address(next(node for node in stage.cluster.nodes if node not in stopped))
        await asyncio.sleep(_WITHOUT_LEADER)
        count = 24_000
        try:
            async with stage.watched(), stage.beside(tags=healthy, through=through):
                flood = {"streams": 1, "operations": 4000, "messages": 6, "timeout": self.size(30, 10)}
                async with stage.abused("flood", addresses=[through], tags=[tags[dead[0]]], **flood) as abuser:
                    began = asyncio.get_running_loop().time()
                    await abuser.until(lambda counts: counts.get("answered", 0) >= count, self.size(40, 15))
                    took = asyncio.get_running_loop().time() - began
                counts = abuser.counts
                # The client has gone; what it asked for may not hold up anybody any longer.
                await asyncio.sleep(self.size(5, 2))
                if not self.short:
                    await stage.note_health("meanwhile")
        finally:
            stage.cluster.resume(paused)
            await asyncio.to_thread(stage.cluster.restart, killed)
        codes = counts.get("codes", {})
        stage.note("writes to the dead group that were answered", counts.get("answered", 0))
        stage.note("their answers", ", ".join(f"{code} {number}" for code, number in sorted(codes.items())) or "none")
        stage.note("until all of them were answered", took, "s", most=5.0, timed=True)

    @staticmethod
    def _dead(pair: set[int], voters: Mapping[int, set[int]], tags: Mapping[int, str]) -> int:
        return sum(len(voters[group] & pair) == 2 for group in tags)
