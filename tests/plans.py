"""Shard maps as plans leave them, for tests of planners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from random import Random

from shards import ShardMap
from shards.leaders import Voters


def replanned(shard_map: ShardMap, plan: Mapping[int, Voters]) -> ShardMap:
    """The map refuses two replicas of a group on one node."""
    groups = (replace(one, voters=plan.get(one.id, one.voters), learners=()) for one in shard_map.groups)
    return replace(shard_map, groups=tuple(groups))


def shuffled(shard_map: ShardMap, seed: int) -> ShardMap:
    nodes, groups = list(shard_map.nodes), list(shard_map.groups)
    Random(seed).shuffle(nodes)
    Random(seed).shuffle(groups)
    return replace(shard_map, nodes=tuple(nodes), groups=tuple(groups))


def held(shard_map: ShardMap) -> dict[int, int]:
    """Voters of data groups on each node."""
    found = Counter(one for group in shard_map.data_groups() for one in group.voters)
    return {one.id: found[one.id] for one in shard_map.nodes}
