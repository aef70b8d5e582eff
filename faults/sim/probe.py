"""How long a group goes without acknowledging a write, asked by clients that are never cut off themselves."""

from __future__ import annotations

import asyncio
from typing import Final

from faults.history import History, Outcome
from faults.recorder import Recorder
from faults.sim.cluster import SimCluster

PATIENCE: Final = 4.5
"""Longest time without an acknowledged write while a minority is at fault, in seconds; 0.1 to 1.4 are usual. The client
may ask two cut-off nodes of five first, 1.25 s and, being more patient then, 2.25 s, and votes may be split."""

_PERIOD: Final = 0.1
LAST_TIMEOUT: Final = 10.0
"""Of calls whose success is the question, in seconds."""


class Probe:
    """Writes to one key of each group, one write after the other. ``worst``: seconds without an acknowledged one."""

    def __init__(self, cluster: SimCluster, history: History, keys: list[str]) -> None:
        self.worst = 0.0
        self.when = ""
        self._loop = cluster.loop
        self._over = False
        self._tasks = [self._start(cluster, history, f"p{number}", key) for number, key in enumerate(keys)]

    def _start(self, cluster: SimCluster, history: History, name: str, key: str) -> asyncio.Task[None]:
        client = cluster.client(name, timeout=LAST_TIMEOUT)
        recorder = Recorder(client, name, history, self._loop.time)

        async def write() -> None:
            last, number = self._loop.time(), 0
            while not self._over:
                number += 1
                written = await recorder.put(key, f"{name}-{number}")
                if written.outcome is Outcome.OK:
                    now = self._loop.time()
                    if now - last > self.worst:
                        self.worst, self.when = now - last, f"{key} from {last:.3f} to {now:.3f}"
                    last = now
                await asyncio.sleep(_PERIOD)
            await client.close()

        return cluster.processes[name].spawn(write())

    async def end(self) -> None:
        """Stop writing."""
        self._over = True
        await asyncio.gather(*self._tasks)
