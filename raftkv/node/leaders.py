"""Who leads which group, as far as this node knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from raftkv.node.requests import GroupPort
from shards.map import META_GROUP, ShardMap


class Peers(Protocol):
    """Links to other nodes, as forwarding needs them."""

    def send(self, node: int, message: list[Any]) -> None: ...

    def up(self, node: int) -> bool: ...

    def unsent(self, node: int) -> int: ...


class Leaders:
    """Leaders by group: from the replica here if there is one, else from what other nodes said last."""

    def __init__(self, node: int, groups: GroupPort, peers: Peers) -> None:
        self._node = node
        self._groups = groups
        self._peers = peers
        self._member_of: frozenset[int] | None = None
        self._known: frozenset[int] | None = None
        self._hints: dict[int, int] = {}
        self._meta_voters: tuple[int, ...] = ()
        """As the latest confirmed map has them."""
        self._seen: dict[int, int] = {}

    def of(self, group: int) -> int:
        """Node that leads ``group``, 0 = nobody."""
        # A replica of a group that this node has left hears nothing of its group any more.
        replica = self._groups.get(group) if self._member_of is None or group in self._member_of else None
        return self._hints.get(group, 0) if replica is None else replica.leader()

    def reachable(self, group: int) -> int:
        """Node that leads ``group`` and can be asked, 0 = nobody."""
        leader = self.of(group)
        return leader if leader == self._node or (leader and self._peers.up(leader)) else 0

    def some_voter(self, group: int, shard_map: ShardMap, turn: int) -> int:
        """Another voter of ``group`` that can be asked, in turns; 0 = there is none."""
        known = shard_map.group(group).voters
        if group == META_GROUP:
            known = tuple(dict.fromkeys((*self._meta_voters, *known)))
        voters = [node for node in known if node != self._node and self._peers.up(node)]
        return voters[(turn + self._node) % len(voters)] if voters else 0

    def learn(self, group: int, leader: int) -> None:
        """Somebody has said that ``leader`` leads ``group``, or it has shown it."""
        self._hints[group] = leader

    def denied(self, group: int, node: int) -> None:
        """``node`` has said that it does not lead ``group``, and knows nobody who does."""
        if self._hints.get(group) == node:
            del self._hints[group]

    def on_leads(self, peer: int, groups: Sequence[int]) -> None:
        """``peer`` says that it leads ``groups``."""
        for group in groups:
            if self._known is None or group in self._known:
                self._hints[group] = peer

    def on_map(self, shard_map: ShardMap, confirmed: ShardMap | None) -> None:
        self._meta_voters = () if confirmed is None else confirmed.group(META_GROUP).voters
        self._member_of = frozenset(group.id for group in shard_map.groups_on(self._node))
        self._known = known = frozenset(group.id for group in shard_map.groups)
        self._hints = {group: leader for group, leader in self._hints.items() if group in known}

    def changed(self, shard_map: ShardMap) -> dict[int, int]:
        """The groups that have another leader than when this was asked last, and who that is."""
        found: dict[int, int] = {}
        for group in shard_map.groups:
            leader = self.of(group.id)
            if leader and leader != self._seen.get(group.id):
                self._seen[group.id] = found[group.id] = leader
        return found
