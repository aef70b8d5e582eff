"""The faults of a storm's network: who is cut off from whom, for how long, and whether it mattered."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from faults import topology
from faults.sim.cluster import SimCluster
from faults.sim.network import Conditions
from faults.sim.storm import Storm

Pair = tuple[str, str]


def length(rng: random.Random, low: float, high: float) -> float:
    """Seconds between the two; short ones are as frequent as long ones."""
    return float(low * (high / low) ** rng.random())


def absence(rng: random.Random, *, gentle: bool) -> float:
    """Seconds for which somebody is out of reach; where the others must go on meanwhile, long enough to show it."""
    return rng.uniform(1.0, 12.0) if gentle else length(rng, 0.1, 6.0)


@dataclass(slots=True)
class _Used(Conditions):
    """Conditions that know whether anything was sent under them."""

    sendings: int = field(default=0, compare=False)

    def delay(self, rng: random.Random) -> tuple[float, int]:
        self.sendings += 1
        return Conditions.delay(self, rng)


class Cuts:
    """Episodes: each lasts a while, undoes itself, and returns whether it took effect, None if it could not be.

    ``clients``: names of the clients' hosts. ``ruined``: nodes that are out of the game, a live view.
    """

    def __init__(self, cluster: SimCluster, storm: Storm, clients: Sequence[str], ruined: Collection[int]) -> None:
        self._cluster = cluster
        self._storm = storm
        self._clients = list(clients)
        self._ruined = ruined
        self._cuts: Counter[Pair] = Counter()

    def end(self) -> None:
        """All ways are open again, and as usual."""
        self._cuts.clear()
        network = self._cluster.network
        network.links.clear()
        network.conditions = Conditions()
        network.heal()

    # -- episodes

    async def partition(self, rng: random.Random) -> bool | None:
        nodes = self._shuffled(rng)
        size = rng.randint(1, len(nodes) // 2)
        leaders = [f"n{node}" for node in self._cluster.leaders().values()]
        if leaders and rng.random() < self._storm.aim:
            # The leader in the minority, so that somebody may still take it for one.
            nodes.sort(key=lambda name: name != leaders[0])
        return await self._split(rng, [nodes[:size], nodes[size:]], f"{nodes[:size]} from {nodes[size:]}")

    async def bridge(self, rng: random.Random) -> bool | None:
        nodes = self._shuffled(rng)
        return await self._split(rng, [*topology.halves(nodes)], f"all but the bridge {nodes[0]}")

    async def ring(self, rng: random.Random) -> bool | None:
        nodes = self._shuffled(rng)
        pairs = topology.ring(nodes)
        if not pairs:
            return None
        return await self._hold(pairs, absence(rng, gentle=self._storm.gentle), f"all but the ring {nodes}")

    async def one_way(self, rng: random.Random) -> bool | None:
        nodes = self._shuffled(rng)
        pairs, shape = topology.one_way(nodes, rng)
        return await self._hold(pairs, absence(rng, gentle=self._storm.gentle), f"one way, {nodes[0]} is {shape}")

    async def flapping(self, rng: random.Random) -> bool | None:
        nodes = self._shuffled(rng)
        one, others = nodes[0], nodes[1 : rng.randint(2, len(nodes))]
        pairs = topology.apart([one], others)
        effect = False
        for _ in range(rng.randint(3, 12)):
            effect |= await self._hold(pairs, length(rng, 0.01, 0.8), f"{one} from {others}, flapping")
            await asyncio.sleep(length(rng, 0.01, 0.5))
        return effect

    async def reset(self, rng: random.Random) -> bool | None:
        hosts = [node.name for node in self._cluster.nodes.values()]
        broken = 0
        for _ in range(rng.randint(1, 4)):
            one = rng.choice(hosts)
            other = rng.choice([host for host in (*hosts, *self._clients) if host != one])
            self._cluster.trace.note(f"connections of {one} and {other} are reset")
            broken += self._cluster.network.reset(one, other)
        return broken > 0

    async def slow_link(self, rng: random.Random) -> bool | None:
        one, other = self._shuffled(rng)[:2]
        usual = self._storm.settings.conditions
        slow = _Used(
            base=usual.base * rng.uniform(2.0, 30.0),
            spread=1.0,
            slow=0.2,
            tail=rng.uniform(0.01, 0.3),
            loss=rng.choice((0.0, 0.1, 0.4)),
            pieces=usual.pieces,
            late=usual.late,
        )
        links = self._cluster.network.links
        pairs = [(one, other)] if rng.random() < 0.5 else [(one, other), (other, one)]
        self._cluster.trace.note(f"slow link {one} to {other}, {len(pairs)} ways")
        for pair in pairs:
            links[pair] = slow
        await asyncio.sleep(length(rng, 0.5, 6.0))
        for pair in pairs:
            links.pop(pair, None)
        return slow.sendings > 0

    async def drop_replies(self, rng: random.Random) -> bool | None:
        client = rng.choice(self._clients)
        leaders = sorted(set(self._cluster.leaders().values()))
        nodes = leaders if leaders and rng.random() < 0.7 else sorted(self._cluster.nodes)
        pairs = [(f"n{node}", client) for node in nodes]
        self._cut(pairs)
        self._cluster.trace.note(f"replies of {nodes} to {client} get lost")
        await asyncio.sleep(length(rng, 0.05, 2.0))
        effect = bool(self._held_bytes(pairs))
        for one, other in pairs:
            self._cluster.network.reset(one, other)
        self._mend(pairs)
        return effect

    def _shuffled(self, rng: random.Random) -> list[str]:
        names = [node.name for node in self._cluster.nodes.values() if node.id not in self._ruined]
        rng.shuffle(names)
        return names

    async def _split(self, rng: random.Random, sides: list[list[str]], what: str) -> bool:
        """Cut two sides off from each other; some of the clients are on one side only."""
        for client in self._clients:
            where = rng.randrange(4)
            if where < 2:
                sides[where].append(client)
        pairs = topology.apart(*sides)
        return await self._hold(pairs, absence(rng, gentle=self._storm.gentle), what)

    async def _hold(self, pairs: list[Pair], seconds: float, what: str) -> bool:
        network = self._cluster.network
        self._cluster.trace.note(f"cut for {seconds:.3f} s: {what}")
        unanswered = network.effects.get("unanswered", 0)
        self._cut(pairs)
        await asyncio.sleep(seconds)
        effect = network.effects.get("unanswered", 0) > unanswered or bool(self._held_bytes(pairs))
        self._mend(pairs)
        self._cluster.trace.note(f"healed: {what}")
        return effect

    def _held_bytes(self, pairs: Iterable[Pair]) -> int:
        wanted = set(pairs)
        return sum(pipe.waiting for pipe in self._cluster.network._pipes if (pipe.source, pipe.target) in wanted)

    def _cut(self, pairs: Iterable[Pair]) -> None:
        for source, target in pairs:
            self._cuts[source, target] += 1
            self._cluster.network.cut(source, target, one_way=True)

    def _mend(self, pairs: Iterable[Pair]) -> None:
        """End these cuts, but for the ways that another episode holds."""
        for source, target in pairs:
            self._cuts[source, target] -= 1
            if self._cuts[source, target] <= 0:
                self._cluster.network.heal(source, target, one_way=True)
