"""Injects the faults of a storm, keeps within what the promises cover, and undoes everything at the end.

Each kind of fault has a task and randomness of its own. Episodes of different kinds overlap freely: a node may lose its
power while its disk is slow and half of the network is cut. So each step looks at what is there before it acts.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from faults.sim.cluster import SNAPSHOT_FOLDER, WAL_FOLDER, SimCluster, SimNode
from faults.sim.cuts import Cuts, absence, length
from faults.sim.disk import of_system
from faults.sim.invariants import Invariants
from faults.sim.storm import DRIFT, FASTEST_WILD, KINDS, Storm
from raftkv.errors import CorruptData
from raftkv.node.node import NodeRefused
from raftkv.raft import RaftGroup
from raftkv.raft.log import BrokenInvariant

_LOOK: Final = 0.25
"""Seconds between looks for nodes that have stopped by themselves."""

_STOPPING: Final = 5.0
"""Seconds within which a node has stopped that must."""

_DARK: Final = 0.2

_HEALING: Final = 20.0
"""Seconds within which a cluster is whole again after one fault."""

_LONGEST_WAIT: Final = 1.5
"""Seconds that a crash waits for its moment."""

_OPERATIONS_OF_A_START: Final = 14
"""A start changes its disk about so often."""


def _groups(node: SimNode) -> list[RaftGroup]:
    return [] if node.node is None else node.node._replicas.all()


def _rotates(node: SimNode) -> bool:
    return node.node is not None and node.node._wal._segments[-1].number != node.node._wal._published


_MOMENTS: Final[tuple[Callable[[SimNode], bool], ...]] = (
    lambda _: True,
    lambda node: node.node is not None and node.node._wal.durable < node.node._wal.appended,
    lambda node: node.node is not None and bool(node.node._replicas._outbox._held),
    _rotates,
    lambda node: node.busy_in_background,
    lambda node: any(group.snapshots._taking for group in _groups(node)),
    lambda node: any(one.snapshots._receiving and one.snapshots._receiving.offset for one in _groups(node)),
    lambda node: any(group.leads() and group.consensus.proposals.open_entries for group in _groups(node)),
)
"""What a crash waits for: nothing, a write to the log, messages behind it, a new segment, a job in the background (new
files, removals, snapshots), a snapshot on its way to disk or from a peer, writes that nobody has heard of."""

EFFECTS: Final = {
    "partition": "bytes or dials were held",
    "bridge": "bytes or dials were held",
    "ring": "bytes or dials were held",
    "one way": "bytes or dials were held",
    "flapping": "bytes or dials were held",
    "reset": "a connection was broken",
    "slow link": "bytes travelled over it",
    "drop replies": "replies to a client were lost",
    "power loss": "bytes were not synced, or the node led a group",
    "blackout": "bytes were not synced somewhere",
    "slow sync": "the log had to wait for the disk",
    "failing sync": "the node stopped, or lost power behind a snapshot that was not synced",
    "full disk": "the node refused writes, or stopped",
    "flipped bit": "the node refused to start",
    "kill": "the node led a group",
    "stop": "the node led a group",
    "transfer": "another node led soon after",
    "pause": "it had something to do meanwhile",
    "drift": "the clock went off by more than 5 ms",
    "wild clock": "the clock went off by more than 50 ms",
    "wiped disk": "the node was refused",
}
"""When a fault is said to have taken effect."""


@dataclass(slots=True)
class Count:
    """How often a kind of fault was injected, and took effect."""

    injected: int = 0
    effective: int = 0


class Nemesis:
    """``clients``: names of the clients' hosts."""

    def __init__(self, cluster: SimCluster, storm: Storm, invariants: Invariants, clients: Sequence[str]) -> None:
        self.counts = {kind: Count() for kind in KINDS if kind in storm.faults}
        self.ruined: dict[int, str] = {}
        """Nodes that must not come back, and why."""
        self._cluster = cluster
        self._storm = storm
        self._invariants = invariants
        self._cuts = Cuts(cluster, storm, clients, self.ruined)
        self._excused: dict[int, set[str]] = {node: set() for node in cluster.nodes}
        self._leaving: dict[int, int] = {}
        """Nodes that were asked to stop, and which of their starts."""
        self._wall_off: dict[int, float] = dict.fromkeys(cluster.nodes, 0.0)
        self._judged: set[tuple[int, int]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._rngs = {kind: random.Random(f"{kind} {storm.seed}") for kind in (*KINDS, "janitor")}

    # -- life

    def start(self) -> None:
        """Begin."""
        episodes: dict[str, Callable[[random.Random], Awaitable[bool | None]]] = {
            "partition": self._cuts.partition,
            "bridge": self._cuts.bridge,
            "ring": self._cuts.ring,
            "one way": self._cuts.one_way,
            "flapping": self._cuts.flapping,
            "reset": self._cuts.reset,
            "slow link": self._cuts.slow_link,
            "drop replies": self._cuts.drop_replies,
            "power loss": self._power_loss,
            "blackout": self._blackout,
            "slow sync": self._slow_sync,
            "failing sync": self._failing_sync,
            "full disk": self._full_disk,
            "flipped bit": self._flipped_bit,
            "kill": self._kill,
            "stop": self._stop,
            "transfer": self._transfer,
            "pause": self._pause,
            "drift": self._drift,
            "wild clock": self._wild_clock,
            "wiped disk": self._wiped_disk,
        }
        loop = self._cluster.loop
        for kind in self.counts:
            self._tasks.append(loop.create_task(self._repeat(kind, episodes[kind]), name=kind))
        self._tasks.append(loop.create_task(self._keep_house(self._rngs["janitor"]), name="janitor"))

    async def _repeat(self, kind: str, episode: Callable[[random.Random], Awaitable[bool | None]]) -> None:
        rng, count = self._rngs[kind], self.counts[kind]
        while True:
            await asyncio.sleep(rng.expovariate(1.0 / self._storm.faults[kind]))
            if self._storm.gentle:
                await self._cluster.ready(_HEALING)
            before = count.injected
            count.injected += 1
            effect = await episode(rng)
            if effect is None:
                count.injected = before
            elif effect:
                count.effective += 1

    async def _keep_house(self, rng: random.Random) -> None:
        """Look at nodes that have stopped by themselves, and start them again after a while."""
        while True:
            await asyncio.sleep(_LOOK)
            for node in self._cluster.nodes.values():
                if node.state in ("failed", "refused"):
                    self._judge(node)
                    if rng.random() < 0.2 and node.disk.before_sync is None:
                        self._revive(node)

    async def calm(self) -> None:
        """Stop injecting and undo everything. Nodes that are ruined stay out."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        cluster = self._cluster
        cluster.trace.note("everything is healed")
        self._cuts.end()
        for number, node in cluster.nodes.items():
            node.clock.set_rate(1.0)
            self._set_wall(node, 0.0)
            node.slowness = 0.0
            node.disk.before_sync = None
            cluster.fill_disk(number, False)
            if node.state == "paused":
                cluster.resume(number)
        for number, starts in self._leaving.items():
            node = cluster.nodes[number]
            if node.up and node.starts == starts:
                await self._left(node)
        for node in cluster.nodes.values():
            self._revive(node)
            if node.id in self.ruined and not node.up and node.state != "refused":
                cluster.restart(node.id)  # another fault of its disk came first: now it must be refused

    async def black_out(self) -> None:
        """All machines lose their power and start again: what they agreed on must come from their disks."""
        nodes = [node for node in self._cluster.nodes.values() if node.up and node.id not in self.ruined]
        for node in nodes:
            self._end(node, power_loss=True)
        await asyncio.sleep(_DARK)
        for node in nodes:
            self._revive(node)

    def settle(self) -> None:
        """After the cluster has converged: look at what became of each node, ruined ones included."""
        for number, node in self._cluster.nodes.items():
            if node.state in ("failed", "refused"):
                self._judge(node)
            if number in self.ruined and node.state != "refused":
                self._invariants.report("ruin", f"n{number} has a {self.ruined[number]} and is {node.state}")
            elif self.ruined.get(number) == "wiped disk":
                self.counts["wiped disk"].effective += 1

    # -- nodes

    def _victim(self, rng: random.Random, states: Iterable[str] = ("running",)) -> SimNode | None:
        cluster, wanted = self._cluster, tuple(states)
        nodes = [node for node in cluster.nodes.values() if node.id not in self.ruined and node.state in wanted]
        if not nodes:
            return None
        leaders = set(cluster.leaders().values())
        leading = [node for node in nodes if node.id in leaders]
        return rng.choice(leading if leading and rng.random() < self._storm.aim else nodes)

    def _leads(self, node: SimNode) -> bool:
        return node.node is not None and any(group.leads() for group in node.node._replicas.all())

    def _unsynced(self, node: SimNode) -> bool:
        """Whether a power loss now costs it anything."""
        return node.node is not None and node.node._wal.durable < node.node._wal.appended

    def _end(self, node: SimNode, *, power_loss: bool) -> None:
        self._invariants.promises.before_crash(node)
        self._cluster.kill(node.id, power_loss=power_loss)
        self._invariants.promises.after_crash(node)

    def _revive(self, node: SimNode) -> None:
        """Start a node that does not run, unless it must not come back."""
        if node.up or node.id in self.ruined:
            return
        if node.state in ("failed", "refused"):
            self._judge(node)
        if node.disk.before_sync is None:
            self._excused[node.id].discard("sync")
        self._cluster.restart(node.id)

    def _judge(self, node: SimNode) -> None:
        """A node has stopped by itself: with good reason?"""
        if (node.id, node.starts) in self._judged:
            return
        self._judged.add((node.id, node.starts))
        problem, ruin = node.fatal, self.ruined.get(node.id)
        excused = self._excused[node.id]
        if ruin == "wiped disk" and isinstance(problem, NodeRefused):
            return
        if ruin == "flipped bit" and isinstance(problem, CorruptData):
            return
        sick = of_system(problem) or of_system(problem.__cause__ if problem else None)
        if excused and sick and not isinstance(problem, CorruptData | NodeRefused | BrokenInvariant):
            if isinstance(problem, OSError) and problem.errno == errno.ENOSPC and "full" not in excused:
                self._invariants.report("stopped", f"n{node.id} found no space on a roomy disk: {problem!r}")
            return
        self._invariants.report("stopped", f"n{node.id} {node.state} without a reason: {problem!r}")

    async def _telling_moment(self, rng: random.Random, node: SimNode) -> None:
        """Wait a while for something that a crash may catch half done: crashes at random find a quiet disk."""
        holds, starts = rng.choice(_MOMENTS), node.starts
        until = self._cluster.loop.time() + _LONGEST_WAIT
        while self._cluster.loop.time() < until and node.node is not None and node.starts == starts:
            if holds(node):
                return
            await asyncio.sleep(rng.uniform(0.0, self._storm.settings.sync))

    def _return(self, rng: random.Random, node: SimNode) -> None:
        """Start a node again; its machine may lose power once more while it recovers."""
        while node.state == "dead" and node.id not in self.ruined and rng.random() < 0.4:
            self._cluster.restart(node.id, power_for=rng.randrange(_OPERATIONS_OF_A_START))
        self._revive(node)

    def _may_ruin(self, node: SimNode) -> bool:
        """Whether each group keeps its majority without this node and those that are ruined already."""
        maps = [one.node.cluster_map() for one in self._cluster.nodes.values() if one.node is not None]
        shard_map = next((one for one in maps if one is not None), None)
        if shard_map is None or node.id in self.ruined:
            return False
        gone = {*self.ruined, node.id}
        return all(len(gone.intersection(group.voters)) <= (len(group.voters) - 1) // 2 for group in shard_map.groups)

    async def _kill(self, rng: random.Random) -> bool | None:
        node = self._victim(rng, ("running", "paused"))
        if node is None:
            return None
        await self._telling_moment(rng, node)
        if not node.up or node.id in self.ruined:
            return None
        led = self._leads(node)
        self._end(node, power_loss=False)
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 3.0))))
        self._return(rng, node)
        return led

    async def _power_loss(self, rng: random.Random) -> bool | None:
        node = self._victim(rng, ("running", "paused"))
        if node is None:
            return None
        await self._telling_moment(rng, node)
        if not node.up or node.id in self.ruined:
            return None
        effect = self._leads(node) or self._unsynced(node)
        self._end(node, power_loss=True)
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 3.0))))
        self._return(rng, node)
        return effect

    async def _blackout(self, rng: random.Random) -> bool | None:
        if (node := self._victim(rng)) is not None:
            await self._telling_moment(rng, node)
        nodes = [node for node in self._cluster.nodes.values() if node.up and node.id not in self.ruined]
        effect = any(self._unsynced(node) for node in nodes)
        for node in nodes:
            self._end(node, power_loss=True)
        rng.shuffle(nodes)
        for node in nodes:
            await asyncio.sleep(rng.uniform(0.0, 0.8))
            self._return(rng, node)
        return effect

    async def _stop(self, rng: random.Random) -> bool | None:
        node = self._victim(rng)
        if node is None:
            return None
        led = self._leads(node)
        self._leaving[node.id] = node.starts
        self._cluster.stop(node.id)
        await self._left(node)
        await asyncio.sleep(rng.uniform(0.0, 2.0))
        self._revive(node)
        return led

    async def _transfer(self, rng: random.Random) -> bool | None:
        leading = [
            (node, group)
            for node in self._cluster.nodes.values()
            if node.node is not None and node.state == "running"
            for group in node.node._replicas.all()
            if group.leads()
        ]
        if not leading:
            return None
        node, group = rng.choice(leading)
        target, starts = rng.choice([voter for voter in group.voters if voter != node.id]), node.starts
        self._cluster.trace.note(f"{node.name} is asked to hand group {group.group} over to n{target}")
        if not group.transfer(target):
            return False
        await self._until(lambda: not group.leads() or node.starts != starts, 2.0)
        return self._cluster.leaders().get(group.group, node.id) != node.id

    async def _left(self, node: SimNode) -> None:
        """Wait until a node that was asked to stop has ended, this way or another."""
        starts = self._leaving[node.id]
        await self._until(lambda: not node.up or node.starts != starts, 10.0)
        if node.state == "running" and node.starts == starts:
            self._invariants.report("stop", f"{node.name} was asked to stop and still runs")

    async def _pause(self, rng: random.Random) -> bool | None:
        node = self._victim(rng)
        if node is None:
            return None
        self._cluster.pause(node.id)
        starts = node.starts
        await asyncio.sleep(absence(rng, gentle=self._storm.gentle))
        if node.state != "paused" or node.starts != starts:
            return True
        effect = bool(node.process.held)
        self._cluster.resume(node.id)
        return effect

    # -- clocks

    async def _drift(self, rng: random.Random) -> bool | None:
        if rng.random() < 0.3:
            node = rng.choice(list(self._cluster.nodes.values()))
            self._set_wall(node, rng.uniform(-1e5, 1e5))
        return await self._change_rate(rng, 1.0 + rng.uniform(-DRIFT, DRIFT), 0.005)

    def _set_wall(self, node: SimNode, off: float) -> None:
        """Let its wall clock be off by so many seconds, within what clients are allowed to differ by."""
        node.clock.step_wall(off - self._wall_off[node.id])
        self._wall_off[node.id] = off

    async def _wild_clock(self, rng: random.Random) -> bool | None:
        return await self._change_rate(rng, rng.choice((rng.uniform(0.2, 0.8), rng.uniform(1.25, FASTEST_WILD))), 0.05)

    async def _change_rate(self, rng: random.Random, rate: float, least: float) -> bool | None:
        node = self._victim(rng, ("running", "paused", "dead"))
        if node is None:
            return None
        loop, clock = self._cluster.loop, node.clock
        began, shown = loop.time(), clock.now()
        self._cluster.set_rate(node.id, rate)
        await asyncio.sleep(length(rng, 1.0, 8.0))
        off = abs((clock.now() - shown) - (loop.time() - began))
        if rng.random() < 0.5:
            self._cluster.set_rate(node.id, 1.0)
        return off > least

    # -- disks

    async def _slow_sync(self, rng: random.Random) -> bool | None:
        node = self._victim(rng)
        if node is None:
            return None
        seconds = length(rng, 0.01, 1.0)
        self._cluster.slow_sync(node.id, seconds)
        until, behind = self._cluster.loop.time() + length(rng, 0.2, 4.0), False
        while self._cluster.loop.time() < until:
            await asyncio.sleep(seconds / 2)
            behind = behind or (node.node is not None and node.node._wal.durable < node.node._wal.appended)
        self._cluster.slow_sync(node.id, 0.0)
        return behind

    async def _failing_sync(self, rng: random.Random) -> bool | None:
        node = self._victim(rng)
        if node is None:
            return None
        self._excused[node.id].add("sync")
        where, starts, disk = rng.choice(("", WAL_FOLDER, SNAPSHOT_FOLDER)), node.starts, node.disk
        disk.failed_syncs.clear()
        # Only once: a second try would succeed, and what it should have written is gone all the same.
        self._cluster.fail_sync(node.id, path=where, once=rng.random() < 0.5)
        await self._until(lambda: not node.up, rng.uniform(0.5, 3.0))
        self._cluster.fail_sync(node.id, False)
        if any(path.startswith(WAL_FOLDER) for path in disk.failed_syncs):
            await self._until(lambda: node.starts != starts or node.state != "running", _STOPPING)
            if node.starts == starts and node.state == "running":
                self._invariants.report("sync", f"{node.name} goes on although {disk.failed_syncs} could not be synced")
        elif disk.failed_syncs and node.starts == starts and node.up and rng.random() < 0.7:
            # It may go on without a snapshot, but must not build on it.
            self._end(node, power_loss=True)
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            self._revive(node)
            return True
        failed = node.state == "failed"
        if failed and rng.random() < 0.5:
            # The machine goes down with it: what the failed sync left behind in memory is gone for good.
            self._cluster.trace.note(f"n{node.id} loses power after its disk failed")
            self._judge(node)
            node.disk.crash(rng)
            self._cluster.network.lose_power(node.name)
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 2.0))))
        self._revive(node)
        return failed

    async def _full_disk(self, rng: random.Random) -> bool | None:
        node = self._victim(rng)
        if node is None:
            return None
        self._excused[node.id].add("full")
        left = int(rng.choice((0.0, rng.uniform(0.0, 6.0))) * self._storm.settings.segment_bytes)
        self._cluster.fill_disk(node.id, True, left)
        until, effect = self._cluster.loop.time() + length(rng, 0.5, 5.0), False
        while self._cluster.loop.time() < until:
            await asyncio.sleep(0.1)
            effect = effect or node.state == "failed" or (node.node is not None and node.node._room.here.disk)
        self._cluster.fill_disk(node.id, False)
        return effect

    async def _flipped_bit(self, rng: random.Random) -> bool | None:
        node = self._victim(rng)
        if node is None or not self._may_ruin(node) or not self._cluster.flip_bit(node.id):
            return None
        self.ruined[node.id] = "flipped bit"
        self._invariants.promises.lost(node.id)
        self._cluster.kill(node.id, power_loss=rng.random() < 0.5)
        self._cluster.restart(node.id)
        return node.state == "refused"

    async def _wiped_disk(self, rng: random.Random) -> bool | None:
        node = self._victim(rng)
        if node is None or not self._may_ruin(node):
            return None
        self.ruined[node.id] = "wiped disk"
        self._end(node, power_loss=False)
        self._invariants.promises.lost(node.id)
        self._cluster.wipe(node.id)
        self._cluster.restart(node.id)
        return False  # settle tells

    # -- small things

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        until = self._cluster.loop.time() + seconds
        while not holds() and self._cluster.loop.time() < until:  # noqa: ASYNC110 - no single event
            await asyncio.sleep(0.05)
