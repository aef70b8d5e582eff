"""Injects the faults of a storm: those of :mod:`faults.nemesis`, and what only simulated clocks, disks and links do.

Each kind of fault has a task and randomness of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from faults.driver import Effect, How, host
from faults.nemesis.fault import Fault, Hold, Maker, between, length, perform, spread
from faults.nemesis.links import answers, bridge, flapping, in_order, loose, on_links, one_way, ring, split
from faults.nemesis.nodes import Choose, aimed, fill_disk, kill, on_nodes, pause, slow_disk, stop
from faults.nemesis.topology import minority
from faults.sim.cluster import SNAPSHOT_FOLDER, WAL_FOLDER, SimNode
from faults.sim.driver import SimDriver
from faults.sim.network import Conditions
from faults.sim.storm import DRIFT, FASTEST_WILD, KINDS, Storm

_LOOK: Final = 0.25
"""Seconds between looks for nodes that have stopped by themselves."""

_PROOF: Final = 0.1
"""Seconds between looks for a proof."""

_STOPPING: Final = 5.0
"""Seconds within which a node has stopped that must."""

_LONGEST_STALL: Final = 0.9
"""Seconds: no call outlasts its time-out by more than the checks allow."""

_HEALING: Final = 20.0
"""Seconds within which a cluster is whole again after one fault."""

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
    "slow sync": "jobs of the disk took longer",
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


def catalogue(storm: Storm) -> dict[str, Maker[SimDriver]]:
    """Every kind of fault, as it is in this storm."""
    anyone: Choose[SimDriver] = aimed(storm.aim)
    expendable = _expendable(storm, anyone)
    down = _at_once_or(3.0)
    # Where the others must go on meanwhile, long enough to show it.
    away = between(1.0, 12.0) if storm.gentle else spread(0.1, 6.0)
    held: tuple[How, ...] = ("black hole",)
    return {
        "partition": on_links(split(storm.aim, clients=True), away, held),
        "bridge": on_links(bridge, away, held),
        "ring": on_links(ring, away, held),
        "one way": on_links(one_way(0.0), away, held),
        "flapping": flapping(loose(0.0), spread(0.5, 6.0), "black hole"),
        "drop replies": on_links(answers(0.7), spread(0.05, 2.0), ("lost answers",)),
        "reset": _reset,
        "slow link": _slow_link(storm.settings.conditions),
        "kill": on_nodes("kill of", anyone, kill, down),
        "power loss": on_nodes("power loss of", anyone, _lose_power, down),
        "blackout": on_nodes("blackout, seen from", anyone, _black_out, between(0.0, 0.0)),
        "stop": on_nodes("stop of", anyone, stop, between(0.0, 2.0)),
        "pause": on_nodes("pause of", anyone, pause, away),
        "transfer": _transfer,
        "slow sync": on_nodes("slow disk of", anyone, slow_disk(spread(0.01, 1.0)), spread(0.2, 4.0)),
        "full disk": on_nodes("full disk of", anyone, fill_disk, spread(0.5, 5.0)),
        "failing sync": on_nodes("failing syncs of", anyone, _failing_sync, _at_once_or(2.0)),
        "flipped bit": on_nodes("flipped bit of", expendable, _flip_bit, between(0.0, 0.0)),
        "wiped disk": on_nodes("wiped disk of", expendable, _wipe, between(0.0, 0.0)),
        "drift": _clock(0.005, lambda rng: 1.0 + rng.uniform(-DRIFT, DRIFT), wall=0.3),
        "wild clock": _clock(0.05, lambda rng: rng.choice((rng.uniform(0.2, 0.8), rng.uniform(1.25, FASTEST_WILD)))),
    }


def _at_once_or(high: float) -> Hold:
    return lambda rng: rng.choice((0.0, rng.uniform(0.0, high)))


# -- links


def _reset(driver: SimDriver, rng: random.Random) -> Fault:
    """Some connections break."""
    hosts = [host(node) for node in driver.cluster.nodes]
    pairs = []
    for _ in range(rng.randint(1, 4)):
        one = rng.choice(hosts)
        pairs.append((one, rng.choice([other for other in (*hosts, *driver.clients) if other != one])))

    async def inject() -> Effect:
        broken = sum([driver.cluster.network.reset(one, other) for one, other in pairs])
        return Effect(lambda: f"{broken} connections were broken" if broken else "")

    return Fault(f"connections of {pairs} are reset", (), None, 0.0, inject)


@dataclass(slots=True)
class _Used(Conditions):
    """Conditions that know whether anything was sent under them."""

    sendings: int = field(default=0, compare=False)

    def delay(self, rng: random.Random) -> tuple[float, int]:
        self.sendings += 1
        return Conditions.delay(self, rng)


def _slow_link(usual: Conditions) -> Maker[SimDriver]:
    def make(driver: SimDriver, rng: random.Random) -> Fault | None:
        nodes, _ = in_order(driver, rng, 0.0)
        if len(nodes) < 2:
            return None
        one, other = map(host, nodes[:2])
        slow = _Used(
            base=usual.base * rng.uniform(2.0, 30.0),
            spread=1.0,
            slow=0.2,
            tail=rng.uniform(0.01, 0.3),
            loss=rng.choice((0.0, 0.1, 0.4)),
            pieces=usual.pieces,
            late=usual.late,
        )
        links = driver.cluster.network.links
        ways = [(one, other)] if rng.random() < 0.5 else [(one, other), (other, one)]

        def undo() -> None:
            for way in ways:
                links.pop(way, None)

        async def inject() -> Effect:
            links.update(dict.fromkeys(ways, slow))
            return Effect(lambda: f"{slow.sendings} sendings went over it" if slow.sendings else "", undo)

        return Fault(f"slow link {one} to {other}, {len(ways)} ways", (), None, length(rng, 0.5, 6.0), inject)

    return make


# -- nodes


async def _lose_power(driver: SimDriver, nodes: Sequence[int], _: random.Random) -> Effect | None:
    return await driver.kill(nodes, power_loss=True)


async def _black_out(driver: SimDriver, nodes: Sequence[int], _: random.Random) -> Effect:
    await driver.telling_moment(driver.cluster.nodes[nodes[0]])
    return await driver.black_out()


def _transfer(driver: SimDriver, rng: random.Random) -> Fault | None:
    """A leader hands over."""
    running = [node for node in driver.cluster.nodes.values() if node.state == "running"]
    leading = [(node, group) for node in running for group in node.replicas() if group.leads()]
    if not leading:
        return None
    node, group = rng.choice(leading)
    target, starts = rng.choice([voter for voter in group.voters if voter != node.id]), node.starts

    async def inject() -> Effect:
        if group.transfer(target):
            await driver.until(lambda: not group.leads() or node.starts != starts, 2.0)
        elsewhere = driver.leaders().get(group.group, node.id) != node.id
        return Effect(lambda: "another node leads" if elsewhere else "")

    how = f"{node.name} is asked to hand group {group.group} over to n{target}"
    return Fault(how, (node.id,), group.group, 0.0, inject)


# -- clocks


def _clock(least: float, rate: Hold, wall: float = 0.0) -> Maker[SimDriver]:
    """``least``: seconds that it must go off to count. ``wall``: share of cases in which a wall clock is set, too."""

    def make(driver: SimDriver, rng: random.Random) -> Fault | None:
        cluster = driver.cluster
        if rng.random() < wall:
            # Within what clients are allowed to differ by.
            rng.choice([*cluster.nodes.values()]).clock.set_wall_off(rng.uniform(-1e5, 1e5))
        if not driver.nodes:
            return None
        node, new, stays = rng.choice(driver.nodes), rate(rng), rng.random() < 0.5
        clock = cluster.nodes[node].clock

        async def inject() -> Effect:
            began, shown = cluster.loop.time(), clock.now()
            cluster.set_rate(node, new)

            def proof() -> str:
                off = abs((clock.now() - shown) - (cluster.loop.time() - began))
                return f"it is off by {off:.3f} s" if off > least else ""

            return Effect(proof, lambda: None if stays else cluster.set_rate(node, 1.0))

        return Fault(f"clock of n{node}", (node,), None, length(rng, 1.0, 8.0), inject)

    return make


# -- disks


async def _failing_sync(driver: SimDriver, nodes: Sequence[int], rng: random.Random) -> Effect:
    """Syncs fail until the node stops, or for a while."""
    cluster = driver.cluster
    node = cluster.nodes[nodes[0]]
    driver.stops.excuse(node.id, "sync")
    where, starts, disk = rng.choice(("", WAL_FOLDER, SNAPSHOT_FOLDER)), node.starts, node.disk
    disk.failed_syncs.clear()
    # Only once: a second try would succeed, and what it should have written is gone all the same.
    cluster.fail_sync(node.id, path=where, once=rng.random() < 0.5)
    await driver.until(lambda: not node.up, rng.uniform(0.5, 3.0))
    cluster.fail_sync(node.id, False)
    proof = ""
    if any(path.startswith(WAL_FOLDER) for path in disk.failed_syncs):
        await driver.until(lambda: node.starts != starts or node.state != "running", _STOPPING)
        if node.starts == starts and node.state == "running":
            driver.report("sync", f"{node.name} goes on although {disk.failed_syncs} could not be synced")
    elif disk.failed_syncs and node.starts == starts and node.up and rng.random() < 0.7:
        # It may go on without a snapshot, but must not build on it.
        driver.end(node, power_loss=True)
        proof = "the node lost power behind it"
    if node.state == "failed":
        proof = "the node stopped"
        if rng.random() < 0.5:
            # The machine goes down with it: what the failed sync left behind in memory is gone for good.
            cluster.trace.note(f"n{node.id} loses power after its disk failed")
            driver.stops.judge(node)
            node.disk.crash(rng)
            cluster.network.lose_power(node.name)
    return Effect(lambda: proof, lambda: driver.revive(node))


def _expendable(storm: Storm, choose: Choose[SimDriver]) -> Choose[SimDriver]:
    """Nobody if a group would lose its majority, counting the nodes that are ruined already.

    Where groups are added, one that no map has yet may be made of any nodes.
    """

    def chosen(driver: SimDriver, rng: random.Random) -> tuple[list[int], int | None]:
        nodes, group = choose(driver, rng)
        shard_map = driver.cluster.map()
        if shard_map is None:
            return [], None
        gone = {*driver.ruined, *nodes}
        if storm.moves:
            kept = len(gone) <= minority(storm.replicas)
        else:
            kept = all(len(gone.intersection(one.voters)) <= minority(len(one.voters)) for one in shard_map.groups)
        return (nodes if kept else []), group

    return chosen


async def _flip_bit(driver: SimDriver, nodes: Sequence[int], rng: random.Random) -> Effect | None:
    node = driver.cluster.nodes[nodes[0]]
    groups = {replica.group for replica in node.replicas()}
    if not any(driver.cluster.closed_files(node.id, groups)):
        return None
    # First, as what the disk was at when the process ended may yet happen, and replace a file.
    driver.end(node, power_loss=rng.random() < 0.5)
    if driver.cluster.flip_bit(node.id, groups):
        driver.ruin(node.id, "flipped bit")
    driver.cluster.restart(node.id)
    return _refused(node)


async def _wipe(driver: SimDriver, nodes: Sequence[int], _: random.Random) -> Effect:
    node = driver.cluster.nodes[nodes[0]]
    driver.ruin(node.id, "wiped disk")
    await driver.wipe(node.id)
    driver.cluster.restart(node.id)
    await driver.until(lambda: node.state == "refused", _STOPPING)
    return _refused(node)


def _refused(node: SimNode) -> Effect:
    return Effect(lambda: "the node was refused" if node.state == "refused" else "")


# -- all of them


class Nemesis:
    """Injects a storm's faults from :meth:`start` to :meth:`calm`."""

    def __init__(self, driver: SimDriver, storm: Storm) -> None:
        self.injected: Counter[str] = Counter()
        self.effective: Counter[str] = Counter()
        self._driver = driver
        self._storm = storm
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        makers, loop, seed = catalogue(self._storm), self._driver.cluster.loop, self._storm.seed
        for kind in filter(self._storm.faults.__contains__, KINDS):
            work = self._repeat(kind, makers[kind], random.Random(f"{kind} {seed}"))
            self._tasks.append(loop.create_task(work, name=kind))
        if self._storm.stalls:
            self._tasks.append(loop.create_task(self._stall_clients(random.Random(f"stalls {seed}")), name="stalls"))
        self._tasks.append(loop.create_task(self._keep_house(random.Random(f"janitor {seed}")), name="janitor"))

    async def _repeat(self, kind: str, make: Maker[SimDriver], rng: random.Random) -> None:
        cluster = self._driver.cluster
        while True:
            await asyncio.sleep(rng.expovariate(1.0 / self._storm.faults[kind]))
            if self._storm.gentle:
                await cluster.ready(_HEALING)
            fault = make(self._driver, rng)
            if fault is None:
                continue
            cluster.trace.note(f"{kind}, {fault.hold:.3f} s: {fault.how}")
            self.injected[kind] += 1
            proof = await perform(fault, cluster.loop.time, _PROOF)
            self.effective[kind] += bool(proof)
            self.injected[kind] -= proof is None

    async def _stall_clients(self, rng: random.Random) -> None:
        """Clients stand still, one at a time, as a machine that sleeps does."""
        while True:
            await asyncio.sleep(rng.expovariate(1.0 / self._storm.stalls))
            process = self._driver.cluster.processes[rng.choice(self._driver.clients)]
            process.pause()
            try:
                await asyncio.sleep(rng.uniform(0.0, _LONGEST_STALL))
            finally:
                process.resume()

    async def _keep_house(self, rng: random.Random) -> None:
        """Look at nodes that have stopped by themselves, and start them again after a while."""
        while True:
            await asyncio.sleep(_LOOK)
            for node in self._driver.cluster.nodes.values():
                if node.state in ("failed", "refused"):
                    self._driver.stops.judge(node)
                    if rng.random() < 0.2 and node.disk.before_sync is None:
                        self._driver.revive(node)

    async def calm(self) -> None:
        """Stop injecting and undo everything. Nodes that are ruined stay out."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await self._driver.heal()
