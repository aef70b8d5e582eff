"""How long a group takes no writes after its leader was killed."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from itertools import count

import grpc

import raftkv
from raftkv.clock import SystemClock
from raftkv.testing import LocalCluster
from raftkv.v1 import admin_pb2, admin_pb2_grpc
from shards.slots import SLOT_RULE, slot_of

_CALM = 1.0
"""Seconds of writing before each kill."""


@dataclass(frozen=True, slots=True)
class Failover:
    """Seconds from kill -9 of the leader to the first write of its group that was started later and acknowledged."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def worst(self) -> float:
        return max(self.seconds)


async def _key_of(group: int, address: str) -> bytes:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await admin_pb2_grpc.AdminStub(channel).GetMap(admin_pb2.GetMapRequest(slot_rule=SLOT_RULE))
    owned = [range(part.first, part.last + 1) for part in answer.ranges if part.group == group]
    keys = (b"failover:%d" % number for number in count())
    return next(key for key in keys if any(slot_of(key, answer.slots) in slots for slots in owned))


async def measure(cluster: LocalCluster, kills: int, group: int = 1) -> Failover:
    """Kill the leader of ``group`` ``kills`` times, each time restarting it once the group writes again."""
    clock = SystemClock()
    seconds: list[float] = []
    async with raftkv.AsyncClient(cluster.endpoints, timeout=30.0) as client:
        key = await _key_of(group, cluster.address(cluster.nodes[0]))
        for _ in range(kills):
            until = clock.now() + _CALM
            while clock.now() < until:
                await client.put(key, b"calm")
            leader = await asyncio.to_thread(cluster.leader, group)
            cluster.kill(leader)
            killed = clock.now()
            await client.put(key, b"after")
            seconds.append(clock.now() - killed)
            await asyncio.to_thread(cluster.restart, leader)
    return Failover(tuple(seconds))
