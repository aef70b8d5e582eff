"""The shard map: nodes, groups and the owner of every slot. Immutable; every change is a new map of the next epoch.

The authoritative copy is the state of the meta group; all others are hints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import groupby
from typing import Any, Final

from shards.slots import MAX_SLOTS, MIN_SLOTS, SLOT_RULE, is_slot_count, rule_refusal

META_GROUP: Final = 0
"""The group whose state machine keeps the map; it owns no slots."""

_MAX_TEXT: Final = 255
_MAX_ID: Final = 2**31 - 1
_MAX_EPOCH: Final = 2**63 - 1


class MapError(ValueError):
    """The shard map, or its encoded form, contradicts itself."""


class LeadersOver(StrEnum):
    """Over what leaderships are spread evenly.

    HOSTS: over machines; on each of them as few nodes as possible lead. NODES: over processes.
    """

    HOSTS = "hosts"
    NODES = "nodes"


@dataclass(frozen=True)
class Node:
    """A process of the cluster. Addresses are host:port; ``incarnation`` names the life of its data folder."""

    id: int
    address: str
    peer_address: str
    incarnation: str

    @property
    def host(self) -> str:
        """The host of its address for clients, as it is written there but for case."""
        return self.address.rpartition(":")[0].lower()


@dataclass(frozen=True)
class Group:
    """A Raft group. The first voter is the one preferred as leader; learners hold the log and have no vote.

    ``founders``: the voters with which its log began; they never change, so that every replica starts from the same
    configuration and learns the rest from the log. Empty = the voters.
    """

    id: int
    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    founders: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.founders:
            object.__setattr__(self, "founders", tuple(sorted(self.voters)))

    @property
    def replicas(self) -> tuple[int, ...]:
        """Nodes that hold the group's log."""
        return (*self.voters, *self.learners)


@dataclass(frozen=True)
class ShardMap:
    """Who owns what. ``owners[slot]`` is a data group's id; ``groups`` holds the data groups and group 0.

    ``removed``: ids of nodes that were members and must never come back. ``leaders_over``: what preferred leaders are
    to be spread over. ``index``: of the entry in the meta group's log that made it, 0 in maps of before this was there.

    Raises MapError if the parts do not fit together: every map that exists is a valid one.
    """

    cluster_id: str
    epoch: int
    slots: int
    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]
    owners: tuple[int, ...]
    removed: tuple[int, ...] = ()
    leaders_over: LeadersOver = LeadersOver.HOSTS
    index: int = 0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def order(self) -> tuple[int, int]:
        """Greater for a later map."""
        return self.index, self.epoch

    @cached_property
    def _node_index(self) -> dict[int, Node]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def _group_index(self) -> dict[int, Group]:
        return {group.id: group for group in self.groups}

    def group_of(self, slot: int) -> int:
        """Id of the group that owns ``slot``. Raises IndexError for a slot that the map does not have."""
        if slot < 0:
            raise IndexError(f"no slot {slot}")
        return self.owners[slot]

    def find(self, node_id: int) -> Node | None:
        """A node, if it is a member."""
        return self._node_index.get(node_id)

    def node(self, node_id: int) -> Node:
        """Raises KeyError for an unknown node."""
        return self._node_index[node_id]

    def group(self, group_id: int) -> Group:
        """Raises KeyError for an unknown group."""
        return self._group_index[group_id]

    def data_groups(self) -> tuple[Group, ...]:
        """All groups but the meta group."""
        return tuple(group for group in self.groups if group.id != META_GROUP)

    def groups_on(self, node: int) -> tuple[Group, ...]:
        """Groups that have a replica (voter or learner) on ``node``."""
        return tuple(group for group in self.groups if node in group.replicas)

    def slots_of(self, group: int) -> tuple[int, ...]:
        """Slots that ``group`` owns, ascending."""
        return tuple(slot for slot, owner in enumerate(self.owners) if owner == group)

    def ranges(self) -> list[tuple[int, int, int]]:
        """Runs of slots with one owner, ascending: (first, last, group), last included."""
        runs: list[tuple[int, int, int]] = []
        slot = 0
        for owner, run in groupby(self.owners):
            length = sum(1 for _ in run)
            runs.append((slot, slot + length - 1, owner))
            slot += length
        return runs

    def with_owner(self, slots: Iterable[int], group: int) -> ShardMap:
        """A map of the next epoch in which ``group`` owns ``slots`` too. Raises MapError for unknown ones."""
        owners = list(self.owners)
        for slot in slots:
            if not 0 <= slot < self.slots:
                raise MapError(f"no slot {slot}")
            owners[slot] = group
        return replace(self, epoch=self.epoch + 1, owners=tuple(owners))

    def with_group(self, group: Group) -> ShardMap:
        """A map of the next epoch in which ``group`` replaces the group of its id, or is new."""
        others = [old for old in self.groups if old.id != group.id]
        return replace(self, epoch=self.epoch + 1, groups=tuple(sorted([*others, group], key=lambda one: one.id)))

    def with_node(self, node: Node) -> ShardMap:
        """A map of the next epoch in which ``node`` replaces the node of its id, or is new."""
        others = [old for old in self.nodes if old.id != node.id]
        return replace(self, epoch=self.epoch + 1, nodes=tuple(sorted([*others, node], key=lambda one: one.id)))

    def with_leaders_over(self, over: LeadersOver) -> ShardMap:
        """A map of the next epoch whose leaders are to be spread over ``over``."""
        return replace(self, epoch=self.epoch + 1, leaders_over=over)

    def without_group(self, group: int) -> ShardMap:
        """A map of the next epoch without ``group``. Raises MapError if it owns slots or is the meta group."""
        return replace(self, epoch=self.epoch + 1, groups=tuple(one for one in self.groups if one.id != group))

    def without_node(self, node: int) -> ShardMap:
        """A map of the next epoch in which ``node`` is among the removed. Raises MapError if it has replicas."""
        nodes = tuple(one for one in self.nodes if one.id != node)
        return replace(self, epoch=self.epoch + 1, nodes=nodes, removed=tuple(sorted({*self.removed, node})))

    def to_wire(self) -> dict[str, Any]:
        """Plain dicts, lists, ints and strings for msgpack or JSON. Equal maps give equal forms."""
        return {
            "slot_rule": SLOT_RULE,
            "cluster_id": self.cluster_id,
            "epoch": self.epoch,
            "slots": self.slots,
            "nodes": [[node.id, node.address, node.peer_address, node.incarnation] for node in self.nodes],
            "groups": [[one.id, list(one.voters), list(one.learners), list(one.founders)] for one in self.groups],
            "ranges": [list(run) for run in self.ranges()],
            "removed": list(self.removed),
            "leaders_over": str(self.leaders_over),
            "index": self.index,
        }

    @staticmethod
    def from_wire(wire: object) -> ShardMap:
        """The map that :meth:`to_wire` encoded. Raises MapError for anything else."""
        if not isinstance(wire, Mapping):
            raise MapError("not an encoded shard map")
        if refusal := rule_refusal(wire.get("slot_rule")):
            raise MapError(refusal)
        nodes = tuple(Node(*_row(row, 4, "node")) for row in _list(wire.get("nodes"), "nodes"))
        groups = []
        for row in _list(wire.get("groups"), "groups"):
            group_id, voters, learners, founders = _row(row, 4, "group")
            lists = (("voters", voters), ("learners", learners), ("founders", founders))
            groups.append(Group(group_id, *(_members(members, name) for name, members in lists)))
        return ShardMap(
            cluster_id=wire.get("cluster_id"),  # type: ignore[arg-type]  # every field is checked on construction
            epoch=wire.get("epoch"),  # type: ignore[arg-type]
            slots=wire.get("slots"),  # type: ignore[arg-type]
            nodes=nodes,
            groups=tuple(groups),
            owners=_owners(_list(wire.get("ranges"), "ranges")),
            removed=tuple(_list(wire.get("removed"), "removed")),
            # Maps of before these were there are in data folders and backups.
            leaders_over=_leaders_over(wire.get("leaders_over", LeadersOver.HOSTS)),
            index=wire.get("index", 0),
        )


def _leaders_over(value: object) -> LeadersOver:
    try:
        return LeadersOver(value)  # type: ignore[arg-type]  # whatever it is, it is compared with the members
    except ValueError:
        raise MapError("leaders are spread over hosts or nodes") from None


def _members(value: object, name: str) -> tuple[int, ...]:
    return tuple(_whole(node, 1, _MAX_ID, name) for node in _list(value, name))


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise MapError(f"{name} must be a list")
    return list(value)


def _row(value: object, length: int, name: str) -> list[Any]:
    row = _list(value, name)
    if len(row) != length:
        raise MapError(f"a {name} has {length} fields")
    return row


def _owners(rows: list[Any]) -> tuple[int, ...]:
    owners: list[int] = []
    for row in rows:
        first, last, group = (_whole(part, 0, _MAX_ID, "slot range") for part in _row(row, 3, "slot range"))
        if first != len(owners) or not first <= last < MAX_SLOTS:
            raise MapError("slot ranges must follow one another")
        owners.extend([group] * (last - first + 1))
    return tuple(owners)


def _whole(value: object, low: int, high: int, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise MapError(f"{name} must be a whole number from {low} to {high}")
    return value


def _text(value: object, name: str, empty: bool = False) -> None:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not (value or empty):
        raise MapError(f"{name} must be text of 1 to {_MAX_TEXT} characters")


def _check(shard_map: ShardMap) -> None:
    _text(shard_map.cluster_id, "cluster id")
    _whole(shard_map.epoch, 1, _MAX_EPOCH, "epoch")
    _whole(shard_map.index, 0, _MAX_EPOCH, "index")
    if not is_slot_count(_whole(shard_map.slots, MIN_SLOTS, MAX_SLOTS, "slots")):
        raise MapError("slots must be a power of two")
    nodes: set[int] = set()
    for node in shard_map.nodes:
        if _whole(node.id, 1, _MAX_ID, "node id") in nodes:
            raise MapError(f"node {node.id} is listed twice")
        nodes.add(node.id)
        _text(node.address, "address")
        _text(node.peer_address, "peer address")
        _text(node.incarnation, "incarnation", empty=True)
    for node_id in shard_map.removed:
        if _whole(node_id, 1, _MAX_ID, "removed node") in nodes:
            raise MapError(f"node {node_id} is both a member and removed")
    groups = _check_groups(shard_map, nodes)
    if META_GROUP not in groups:
        raise MapError("there is no meta group")
    if len(shard_map.owners) != shard_map.slots:
        raise MapError(f"{len(shard_map.owners)} owners for {shard_map.slots} slots")
    for owner in set(shard_map.owners):
        if owner == META_GROUP or owner not in groups:
            raise MapError(f"slots belong to group {owner}, which is not a data group")


def _check_groups(shard_map: ShardMap, nodes: set[int]) -> set[int]:
    groups: set[int] = set()
    for group in shard_map.groups:
        if _whole(group.id, 0, _MAX_ID, "group id") in groups:
            raise MapError(f"group {group.id} is listed twice")
        groups.add(group.id)
        replicas = [_whole(replica, 1, _MAX_ID, "replica") for replica in group.replicas]
        for founder in group.founders:
            _whole(founder, 1, _MAX_ID, "founder")
        if not group.voters:
            raise MapError(f"group {group.id} has no voters")
        if len(set(replicas)) != len(replicas):
            raise MapError(f"group {group.id} has two replicas on one node")
        if not nodes.issuperset(replicas):
            raise MapError(f"group {group.id} has a replica on an unknown node")
    return groups
