"""The first placement of a new cluster: slots on groups by the ring, replicas spread evenly over nodes, preferred
leaders over hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shards.leaders import LeaderLoad, LeaderPlaces
from shards.map import META_GROUP, Group, LeadersOver, MapError, Node, ShardMap
from shards.ring import Ring
from shards.slots import DEFAULT_SLOTS

MAX_META_VOTERS: Final = 5


def initial_map(
    cluster_id: str, nodes: Sequence[Node], groups: int, slots: int = DEFAULT_SLOTS, replicas: int = 3
) -> ShardMap:
    """Map of epoch 1 with data groups 1..``groups`` of ``replicas`` voters each and the meta group.

    The same arguments give the same map on every node, whatever the order of ``nodes``. Raises MapError if there are
    fewer nodes than replicas, more groups than slots, or an argument is out of range.
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
    return ShardMap(cluster_id, 1, slots, tuple(ordered), (meta, *_spread(ids, groups, replicas, load)), owners)


def meta_voters(nodes: Sequence[int]) -> tuple[int, ...]:
    """Node ids that form the meta group of a new cluster of ``nodes``."""
    # A fourth voter would make majorities bigger and tolerate no more failures than three.
    count = 3 if len(nodes) == 4 else min(len(nodes), MAX_META_VOTERS)
    return tuple(sorted(nodes)[:count])


def _spread(nodes: list[int], groups: int, replicas: int, load: LeaderLoad) -> list[Group]:
    """Deal replicas out in turn, so nodes differ by one at most; leaders as ``load`` says, which counts them."""
    spread: list[Group] = []
    for index in range(groups):
        voters = [nodes[(index * replicas + turn) % len(nodes)] for turn in range(replicas)]
        first = min(range(replicas), key=lambda turn: load.rank(voters[turn]))
        load.add(voters[first])
        spread.append(Group(index + 1, tuple(voters[first:] + voters[:first])))
    return spread
