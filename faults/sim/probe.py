"""How long a group goes without acknowledging a write, in storms in which that is bounded."""

from __future__ import annotations

import asyncio
from typing import Final

from faults.history import History
from faults.look import LAST_TIMEOUT
from faults.probe import Probe
from faults.recorder import Recorder
from faults.sim.cluster import SimCluster

PATIENCE: Final = 4.5
"""Longest time without an acknowledged write while a minority is at fault, in seconds; 0.1 to 1.4 are usual. The client
may ask two cut-off nodes of five first, 1.25 s and, being more patient then, 2.25 s, and votes may be split."""

_PERIOD: Final = 0.1


class Probes:
    """One probe for each of ``keys``, each through a client of its own. They write from now on."""

    def __init__(self, cluster: SimCluster, history: History, keys: list[str]) -> None:
        self._over = False
        self._probes: list[Probe] = []
        self._tasks: list[asyncio.Task[None]] = []
        for number, key in enumerate(keys):
            name = f"p{number}"
            recorder = Recorder(cluster.client(name, timeout=LAST_TIMEOUT), name, history, cluster.loop.time)
            self._probes.append(Probe(recorder, key, cluster.loop.time, _PERIOD))
            self._tasks.append(cluster.processes[name].spawn(self._probes[-1].write(lambda: self._over)))

    @property
    def slowest(self) -> Probe:
        """The one that waited longest for an acknowledged write."""
        return max(self._probes, key=lambda probe: probe.worst)

    async def end(self) -> None:
        """Stop writing."""
        self._over = True
        await asyncio.gather(*self._tasks)
