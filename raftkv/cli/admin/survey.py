"""Looking at a whole cluster: its state, what each node says, and the stats of the slots."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raftkv.api.status import ClusterState, NodeStatus, ReplicaStatus, Role, SlotStats
from raftkv.cli.admin.common import Precondition, complain
from raftkv.cli.admin.text import listed
from raftkv.client.admin import AdminClient
from raftkv.errors import RaftKVError
from shards.map import ShardMap

Said = NodeStatus | str
"""What a node said of itself, or why nothing is known of it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The cluster's state and what its nodes said at about that time."""

    state: ClusterState
    said: Mapping[int, Said]

    def status(self, node: int) -> NodeStatus | None:
        """What ``node`` said, None if it could not be asked."""
        said = self.said.get(node)
        return said if isinstance(said, NodeStatus) else None

    @property
    def alive(self) -> frozenset[int]:
        """Nodes that answer."""
        return frozenset(node for node in self.said if self.status(node) is not None)

    def replica(self, group: int, node: int) -> ReplicaStatus | None:
        """The replica of ``group`` at ``node``, None if there is none or the node does not answer."""
        status = self.status(node)
        return None if status is None else next((one for one in status.replicas if one.group == group), None)

    def leader(self, group: int) -> int | None:
        """The node that leads ``group`` in the newest term that anyone reports, None if none does."""
        replicas = [(node, found) for node in self.said if (found := self.replica(group, node)) is not None]
        newest = max((one.term for _, one in replicas), default=0)
        leading = [node for node, one in replicas if one.role is Role.LEADER and one.term == newest]
        return leading[0] if leading else None


async def current(client: AdminClient) -> ClusterState:
    """The cluster's state, or one node's copy of the map; the user is told if it is that."""
    state = await client.state_or_map()
    if not state.vouched:
        complain("the meta group does not answer: this is one node's copy of the map, which may be old")
    return state


async def survey(client: AdminClient, state: ClusterState | None = None) -> Picture:
    """Ask the cluster for its state, unless it is given, and then all nodes at once."""
    state = state or await client.state_or_map()
    nodes = state.map.nodes

    async def one(address: str) -> Said:
        try:
            return await client.status(address)
        except RaftKVError as error:
            return str(error)

    answers = await asyncio.gather(*(one(node.address) for node in nodes))
    said: dict[int, Said] = {}
    for node, answer in zip(nodes, answers, strict=True):
        said[node.id] = checked(state.map, node.id, answer)
    return Picture(state, said)


def checked(shard_map: ShardMap, node: int, said: Said) -> Said:
    """``said``, unless another node answered at the address of ``node``."""
    if isinstance(said, str):
        return said
    if said.cluster_id != shard_map.cluster_id:
        return f"a node of another cluster answers at its address: {said.cluster_id or 'no id'}"
    if said.node != node:
        return f"node {said.node} answers at its address"
    return said


async def slot_stats(client: AdminClient, shard_map: ShardMap) -> dict[int, SlotStats]:
    """Slot -> its stats at the leader of its group; slots of groups without a leader that answers are missing."""

    async def one(address: str) -> list[SlotStats]:
        try:
            return await client.slots(address)
        except RaftKVError:
            return []

    answers = await asyncio.gather(*(one(node.address) for node in shard_map.nodes))
    return owned_stats(shard_map, (one for answer in answers for one in answer))


def owned_stats(shard_map: ShardMap, found: Iterable[SlotStats]) -> dict[int, SlotStats]:
    """One of each slot: its owner's, if that has told some. While a slot moves, two groups have it."""
    chosen: dict[int, SlotStats] = {}
    for one in found:
        if one.slot < shard_map.slots and (one.slot not in chosen or shard_map.owners[one.slot] == one.group):
            chosen[one.slot] = one
    return chosen


def check_quorums(picture: Picture, groups: Iterable[int]) -> None:
    """Raises Precondition that names those of ``groups`` that have lost their majority: their members cannot change."""
    problems = []
    for number in groups:
        voters = picture.state.map.group(number).voters
        away = [node for node in voters if node not in picture.alive]
        if 2 * (len(voters) - len(away)) <= len(voters):
            problems.append(f"group {number} (voters {listed(voters)}; no answer from {listed(away)})")
    if problems:
        raise Precondition(
            f"{'; '.join(problems)} {'has' if len(problems) == 1 else 'have'} no majority: bring nodes back first, "
            "a group without a majority cannot change its members"
        )
