"""A leader whose disk has no room."""

from __future__ import annotations

import asyncio

from faults.abuse.stage import AbuseScenario, Stage
from faults.disks import SickDisk

_LED = 30.0


class DiskFullLeader(AbuseScenario):
    name = "disk-full-leader"
    what = "the disk of a node that leads is full; the other nodes have room"
    sick_disks = True

    async def run(self, stage: Stage) -> None:
        tags = await stage.tags()
        group = next(iter(tags))
        leader = await stage.settled(group)
        disk: SickDisk = stage.extra["disks"][leader]
        async with stage.watched(), stage.beside(tags=[tags[group]], p99=None, failed=None) as client:
            disk.tell(full=True)
            began = client.counts.get("writes", 0)
            await asyncio.sleep(self.size(3, 1))
            before = dict(client.counts.get("failed", {}))
            stage.note("writes refused before others led", sum(before.values()))
            await client.until(lambda counts: counts.get("writes", 0) > began + 50, _LED)
            stage.note("another node leads the group", int(await stage.leader(group) != leader), least=1)
            stage.note("writes while the disk was full", client.counts.get("writes", 0) - began, least=50)
            await stage.note_health("meanwhile", "disk_full")
            stage.note("nodes that live meanwhile", stage.alive(), least=len(stage.cluster.nodes))
            stage.note("requests that the disk refused", disk.refused, least=1)
            disk.tell()
            await asyncio.sleep(self.size(5, 1))
        for node in stage.cluster.nodes:
            if stage.cluster.pid(node) is None:
                await asyncio.to_thread(stage.cluster.restart, node)
