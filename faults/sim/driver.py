"""What can be done to a simulated cluster, and what shows that it took effect: see :class:`faults.driver.Driver`.

Faults of different kinds overlap freely: a node may lose its power while its disk is slow and half of the network is
cut. So everything looks at what is there before it acts, and again before it is undone.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from faults.driver import Effect, How, Way
from faults.sim.cluster import SNAPSHOT_FOLDER, WAL_FOLDER, SimCluster, SimNode
from faults.sim.invariants import Invariants
from faults.sim.network import Conditions
from faults.sim.ownership import Ownership
from faults.sim.stops import Ruin, Stops
from raftkv import AsyncClient

T = TypeVar("T")

_DARK: Final = 0.2
"""Seconds without power, of all machines at once."""

_LONGEST_WAIT: Final = 1.5
"""Seconds that a crash waits for its moment."""

_OPERATIONS_OF_A_START: Final = 14
"""A start changes its disk about so often."""

_LEAVING: Final = 10.0
"""Seconds within which a node has ended that was asked to."""

_MOMENTS: Final[tuple[Callable[[SimNode], bool], ...]] = (
    lambda _: True,
    lambda node: node.log_waits,
    lambda node: node.disk.unsynced_names(WAL_FOLDER),
    lambda node: node.busy_in_background,
    lambda node: node.disk.unsynced_names(SNAPSHOT_FOLDER),
    lambda node: any(one.leads() and one.core.applied_index() < one.log.last_index for one in node.replicas()),
)
"""What a crash waits for: nothing, a write to the log (messages wait behind it), a new segment, a job in the background
(new files, removals, snapshots), a snapshot on its way to disk or from a peer, writes that nobody has heard of."""


class SimDriver:
    """``clients``: names of those that can be cut off. ``seed``: of what it draws itself."""

    def __init__(self, cluster: SimCluster, invariants: Invariants, clients: Sequence[str], seed: int) -> None:
        self.cluster = cluster
        self.clients = clients
        self.stops = Stops(cluster.nodes, invariants.report)
        self.ownership: Ownership | None = None
        """Who must have got what was asked for, in the end."""
        self.report = invariants.report
        self._invariants = invariants
        self._rng = random.Random(f"driver {seed}")
        self._cuts: Counter[Way] = Counter()
        self.drift = 0.0
        """By how much the rates of clients' clocks may differ from the true one."""
        self._leaving: dict[int, int] = {}
        """Nodes that were asked to stop, and which of their starts."""

    # -- who is there

    @property
    def ruined(self) -> Mapping[int, Ruin]:
        return self.stops.ruined

    @property
    def nodes(self) -> list[int]:
        return [node for node in self.cluster.nodes if node not in self.ruined]

    @property
    def alive(self) -> list[int]:
        return [node for node in self.nodes if self.cluster.nodes[node].up]

    def leaders(self) -> dict[int, int]:
        return self.cluster.leaders()

    def voters(self, group: int) -> tuple[int, ...]:
        replicas = [one for node in self.cluster.nodes.values() for one in node.replicas() if one.group == group]
        return replicas[0].voters if replicas else ()

    async def unsettled(self) -> str:
        groups: dict[int, list[tuple[str, int, int, bool]]] = {}
        nodes = [self.cluster.nodes[node] for node in self.nodes]
        for node in nodes:
            if node.node is None:
                return f"{node.name} is {node.state}"
            if not node.node.ready():
                return f"{node.name} is not ready"
            for group in node.replicas():
                state = (node.name, group.core.applied_index(), group.log.last_index, group.leads())
                groups.setdefault(group.group, []).append(state)
        for number, states in sorted(groups.items()):
            if len({index for _, applied, last, _ in states for index in (applied, last)}) != 1:
                return f"group {number} at (applied, last) {[state[:3] for state in states]}"
            if sum(leads for *_, leads in states) != 1:
                return f"group {number} is led by {[name for name, *_, leads in states if leads]}"
        for node in nodes:
            for group in node.replicas():
                self._invariants.compare(node, group, group.core.applied_index())
        return "" if self.ownership is None else self.ownership.unsettled(self.ruined)

    # -- processes

    async def kill(self, nodes: Sequence[int], *, power_loss: bool = False) -> Effect | None:
        """At a telling moment. The machine with it in a ``power_loss``."""
        effects = []
        for node in (self.cluster.nodes[number] for number in nodes):
            await self.telling_moment(node)
            if node.up and node.id not in self.ruined:
                effects.append(node.leads() or (power_loss and node.log_waits))
                self.end(node, power_loss=power_loss)
        if not effects:
            return None

        def undo() -> None:
            for number in nodes:
                self._return(self.cluster.nodes[number])

        return Effect(lambda: "a leader is gone, or what was not synced" if any(effects) else "", undo)

    async def stop(self, node: int) -> Effect | None:
        one = self.cluster.nodes[node]
        if one.state != "running":
            return None
        led = one.leads()
        self._leaving[node] = one.starts
        self.cluster.stop(node)
        await self._left(one)
        return Effect(lambda: "it led a group" if led else "", lambda: self.revive(one))

    async def pause(self, nodes: Sequence[int]) -> Effect | None:
        running = [node for number in nodes if (node := self.cluster.nodes[number]).state == "running"]
        paused = {node: node.starts for node in running}
        for node in paused:
            self.cluster.pause(node.id)

        def still(node: SimNode) -> bool:
            return node.state == "paused" and node.starts == paused[node]

        def proof() -> str:
            had = any(bool(node.process.held) or not still(node) for node in paused)
            return "it had something to do meanwhile" if had else ""

        def undo() -> None:
            for node in filter(still, paused):
                self.cluster.resume(node.id)

        return Effect(proof, undo) if paused else None

    async def wipe(self, node: int) -> None:
        one = self.cluster.nodes[node]
        if one.up:
            self.end(one, power_loss=False)
        self.cluster.wipe(node)

    def ruin(self, node: int, why: Ruin) -> None:
        """It must not come back from now on, and its disk keeps no promise."""
        self.stops.ruined[node] = why
        self._invariants.promises.lost(node)

    def end(self, node: SimNode, *, power_loss: bool) -> None:
        """End its process at once, or its machine with it."""
        self._invariants.promises.before_crash(node)
        self.cluster.kill(node.id, power_loss=power_loss)
        self._invariants.promises.after_crash(node)

    def revive(self, node: SimNode) -> None:
        """Start a node that does not run, unless it must not come back."""
        if node.up or node.id in self.ruined:
            return
        self.stops.judge(node)
        if node.disk.before_sync is None:
            self.stops.blame(node.id)
        self.cluster.restart(node.id)

    def _return(self, node: SimNode) -> None:
        """Start a node again; its machine may lose power once more while it recovers."""
        rng = self._rng
        while node.state == "dead" and node.id not in self.ruined and rng.random() < 0.4:
            self.cluster.restart(node.id, power_for=rng.randrange(_OPERATIONS_OF_A_START))
        self.revive(node)

    async def telling_moment(self, node: SimNode) -> None:
        """Wait a while for something that a crash may catch half done: crashes at random find a quiet disk."""
        holds, starts = self._rng.choice(_MOMENTS), node.starts
        until = self.cluster.loop.time() + _LONGEST_WAIT
        while self.cluster.loop.time() < until and node.node is not None and node.starts == starts:
            if holds(node):
                return
            await asyncio.sleep(self._rng.uniform(0.0, self.cluster.settings.sync))

    async def _left(self, node: SimNode) -> None:
        """Wait until a node that was asked to stop has ended, this way or another."""
        starts = self._leaving[node.id]
        await self.until(lambda: not node.up or node.starts != starts, _LEAVING)
        if node.state == "running" and node.starts == starts:
            self.report("stop", f"{node.name} was asked to stop and still runs")

    async def until(self, holds: Callable[[], bool], seconds: float) -> None:
        """Wait for that, so long at most."""
        until = self.cluster.loop.time() + seconds
        while not holds() and self.cluster.loop.time() < until:  # noqa: ASYNC110 - no single event
            await asyncio.sleep(0.05)

    async def black_out(self) -> Effect:
        """All machines lose their power; undone, they start again one after the other."""
        nodes = [self.cluster.nodes[node] for node in self.alive]
        effect = any(node.log_waits for node in nodes)
        for node in nodes:
            self.end(node, power_loss=True)

        async def undo() -> None:
            self._rng.shuffle(nodes)
            for node in nodes:
                await asyncio.sleep(self._rng.uniform(0.0, 4 * _DARK))
                self._return(node)

        return Effect(lambda: "bytes were not synced somewhere" if effect else "", undo)

    # -- links

    async def cut(self, ways: Sequence[Way], how: How) -> Effect:
        network = self.cluster.network
        self.cluster.trace.note(f"{how}: {', '.join(f'{one}>{other}' for one, other in ways)}")
        for source, target in ways:
            self._cuts[source, target] += 1
            network.cut(source, target, one_way=True)
            if how == "reset":
                network.reset(source, target)

        def undo() -> None:
            if how == "lost answers":
                for source, target in ways:
                    network.reset(source, target)
            self._mend(ways)
            self.cluster.trace.note(f"end of {how}: {', '.join(f'{one}>{other}' for one, other in ways)}")

        return Effect(lambda: "bytes or dials were held" if network.held(ways) else "", undo)

    def _mend(self, ways: Iterable[Way]) -> None:
        """End these cuts, but for the ways that another fault holds."""
        for source, target in ways:
            self._cuts[source, target] -= 1
            if self._cuts[source, target] <= 0:
                self.cluster.network.heal(source, target, one_way=True)

    # -- disks

    async def slow_disk(self, node: int, seconds: float) -> Effect:
        one = self.cluster.nodes[node]
        before = one.slowed
        self.cluster.slow_sync(node, seconds)
        return Effect(
            lambda: f"{one.slowed - before} jobs of the disk took longer" if one.slowed > before else "",
            lambda: self.cluster.slow_sync(node, 0.0),
        )

    async def fill_disk(self, node: int) -> Effect:
        one, segment = self.cluster.nodes[node], self.cluster.settings.segment_bytes
        self.stops.excuse(node, "full")
        self.cluster.fill_disk(node, True, int(self._rng.choice((0.0, self._rng.uniform(0.0, 6.0))) * segment))

        def proof() -> str:
            if one.state == "failed":
                return "the node stopped"
            problems = () if one.node is None else one.node.status().problems
            return "the node says so" if any(problem.kind == "disk_full" for problem in problems) else ""

        return Effect(proof, lambda: self.cluster.fill_disk(node, False))

    # -- all of it

    async def heal(self) -> None:
        """Nodes that are ruined stay out."""
        cluster = self.cluster
        cluster.trace.note("everything is healed")
        self._cuts.clear()
        cluster.network.links.clear()
        cluster.network.conditions = Conditions()
        cluster.network.heal()
        for number, node in cluster.nodes.items():
            node.clock.set_rate(1.0)
            node.clock.set_wall_off(0.0)
            node.disk.before_sync = None
            cluster.slow_sync(number, 0.0)
            cluster.fill_disk(number, False)
            if node.state == "paused":
                cluster.resume(number)
        for number, starts in self._leaving.items():
            node = cluster.nodes[number]
            if node.up and node.starts == starts:
                await self._left(node)
        for node in cluster.nodes.values():
            self.revive(node)
            if node.id in self.ruined and not node.up and node.state != "refused":
                cluster.restart(node.id)  # another fault of its disk came first: now it must be refused

    # -- clients

    def client(self, name: str, timeout: float) -> AsyncClient:
        rate = 1.0 + self._rng.uniform(-self.drift, self.drift) if self.drift else 1.0
        return self.cluster.client(name, timeout=timeout, rate=rate)

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self.cluster.processes[name].spawn(work)
