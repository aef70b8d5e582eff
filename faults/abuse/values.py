"""Large values: what they cost in memory and on disk while they come, and afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Final

import raftkv
from faults.abuse.stage import MB, AbuseScenario, Stage
from faults.keys import PREFIX
from raftkv.errors import RaftKVError
from raftkv.limits import MAX_INFLIGHT_APPEND_BYTES, MAX_PENDING_BYTES, MAX_UNSYNCED_BYTES, MAX_VALUE_BYTES

_WRITERS: Final = 16
_TIMEOUT: Final = 120.0
_MOST: Final = 2.2
"""Of the memory beyond that of an idle node, by the data."""

_GROUPS: Final = 3
_FOLLOWERS: Final = 2
_UNDER_WAY: Final = MAX_PENDING_BYTES + _GROUPS * (MAX_UNSYNCED_BYTES + _FOLLOWERS * MAX_INFLIGHT_APPEND_BYTES)
"""What a node may hold of what is under way, if it leads all groups; in the short form it is most of all."""

_SETTLES: Final = 10.0


class LargeValues(AbuseScenario):
    name = "large-values"
    what = "480 MiB of values of 1 MiB, by 16 writers"
    memory = None

    async def run(self, stage: Stage) -> None:
        count = self.size(480, 64)
        data = count * MAX_VALUE_BYTES
        keys = iter(range(count))
        failed: Counter[str] = Counter()

        async def write(client: raftkv.AsyncClient, keys: Iterator[int]) -> None:
            for number in keys:
                try:
                    await client.put(f"{PREFIX}value/{number}", b"v" * MAX_VALUE_BYTES)
                except RaftKVError as problem:
                    failed[type(problem).__name__] += 1

        async with (
            stage.watched(),
            stage.beside(),
            raftkv.AsyncClient(stage.cluster.endpoints, timeout=_TIMEOUT) as client,
        ):
            async with asyncio.TaskGroup() as group:
                for _ in range(_WRITERS):
                    group.create_task(write(client, keys))
            if not self.short:
                await asyncio.sleep(_SETTLES)
            afterwards = stage.memory_now
        allowed = stage.idle * MB + _MOST * data + (_UNDER_WAY if self.short else 0)
        stage.note("data", data / MB, "MB")
        stage.note("writes failed", failed.total(), most=0)
        stage.note("peak memory", stage.peak, "MB", most=round(allowed / MB))
        stage.note("peak memory beyond an idle node's, by the data", (stage.peak - stage.idle) * MB / data)
        stage.note("memory 10 s later beyond an idle node's, by the data", (afterwards - stage.idle) * MB / data)
        stage.note("peak of a data folder, by the data", stage.disk_peak * MB / data)
