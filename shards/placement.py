"""The first placement of a new cluster: slots on groups by the ring, replicas spread evenly over hosts and nodes,
preferred leaders over hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from shards.leaders import LeaderLoad, LeaderPlaces
from shards.map import META_GROUP, Group, LeadersOver, MapError, Node, ShardMap
from shards.ring import Ring
from shards.slots import DEFAULT_SLOTS

MAX_META_VOTERS: Final = 5


def initial_map(
    cluster_id: str, nodes: Sequence[Node], groups: int, slots: int = DEFAULT_SLOTS, replicas: int = 3
) -> ShardMap:
    """Map of epoch 1 with data groups 1..``groups`` of ``replicas`` voters each and the meta group.

    No two replicas of a data group are on one host unless there are fewer hosts than replicas. The same arguments give
    the same map on every node, whatever the order of ``nodes``. Raises MapError if there are fewer nodes than replicas,
    more groups than slots, or an argument is out of range.
    """
    if not 1 <= groups <= slots:
        raise MapError(f"groups must be from 1 to {slots}")
    if not 1 <= replicas <= len(nodes):
        raise MapError(f"{replicas} replicas need as many nodes, there are {len(nodes)}")
    ordered = sorted(nodes, key=lambda node: node.id)
    ids = [node.id for node in ordered]
    owners = Ring(range(1, groups + 1)).assign(slots)
    meta = Group(META_GROUP, meta_voters(ids))
    load = LeaderLoad(LeaderPlaces(ordered, LeadersOver.HOSTS))
    return ShardMap(cluster_id, 1, slots, tuple(ordered), (meta, *_spread(ordered, groups, replicas, load)), owners)


def meta_voters(nodes: Sequence[int]) -> tuple[int, ...]:
    """Node ids that form the meta group of a new cluster of ``nodes``.

    Nodes must agree on them before they share a map, so hosts do not count: an address may be written in two ways.
    """
    # A fourth voter would make majorities bigger and tolerate no more failures than three.
    count = 3 if len(nodes) == 4 else min(len(nodes), MAX_META_VOTERS)
    return tuple(sorted(nodes)[:count])


class ReplicaLoad:
    """How many replicas each node has, and which hosts have how many for each of their nodes.

    ``hosts``: the host of every node; ``replicas``: one node for each replica.
    """

    def __init__(self, hosts: Mapping[int, str], replicas: Iterable[int] = ()) -> None:
        self.hosts = hosts
        self.of = Counter(replicas)
        self._at = Counter[str]()
        for node, count in self.of.items():
            self._at[hosts[node]] += count
        self._nodes = Counter(hosts.values())

    def add(self, node: int) -> None:
        """``node`` has one replica more."""
        self.of[node] += 1
        self._at[self.hosts[node]] += 1

    def rank(self, node: int) -> tuple[int, Fraction]:
        """The less loaded, the less."""
        host = self.hosts[node]
        return self.of[node], Fraction(self._at[host], self._nodes[host])


def apart(nodes: Iterable[int], count: int, hosts: Mapping[int, str], rank: Callable[[int], Any]) -> list[int]:
    """``count`` of ``nodes``, as few as possible of them on one host, then of least ``rank``; by rank."""
    left, chosen, on = list(nodes), list[int](), Counter[str]()
    for _ in range(count):
        best = min(left, key=lambda node: (on[hosts[node]], rank(node)))
        left.remove(best)
        chosen.append(best)
        on[hosts[best]] += 1
    return sorted(chosen, key=rank)


def _spread(nodes: Sequence[Node], groups: int, replicas: int, leaders: LeaderLoad) -> list[Group]:
    """Each group where least is; leaders as ``leaders`` says, which counts them."""
    load = ReplicaLoad({node.id: node.host for node in nodes})
    spread: list[Group] = []
    for group in range(1, groups + 1):
        voters = apart(load.hosts, replicas, load.hosts, lambda node: (load.rank(node), node))
        for node in voters:
            load.add(node)
        first = min(range(replicas), key=lambda turn: leaders.rank(voters[turn]))
        leaders.add(voters[first])
        spread.append(Group(group, tuple(voters[first:] + voters[:first])))
    return spread
