"""What leaders do on their own: the first shard map, a group's first slots, the passing of time, handing over to the
node that the map prefers.

Every step looks only at replicated state and may be repeated by any later leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from raftkv.clock import Clock
from raftkv.commands.base import Command
from raftkv.commands.group import Genesis, Tick
from raftkv.commands.meta import FormCluster
from raftkv.commands.results import Result
from raftkv.node.replicas import Replica, Replicas
from raftkv.node.room import Room
from raftkv.raft import RaftGroup
from raftkv.store.codec import pack
from shards.leaders import Succession, Voters
from shards.map import META_GROUP, Node, ShardMap
from shards.placement import initial_map

_PATIENCE: Final = 1.0
"""Seconds before a proposal whose outcome is unknown is made again."""

_SETTLED: Final = 3.0
"""Seconds for which a leader leads before it gives way to the preferred one: a cluster that starts, or a node that
comes and goes, must not hand over twice."""

_BETWEEN_TRANSFERS: Final = 10.0

_BETWEEN_FLIGHTS: Final = 1.0
"""Seconds between two tries to hand over what a node without room leads."""

_BETWEEN_LOOKS: Final = 0.02
"""Seconds, while leaderships are given away at the end."""

_MAX_LAG: Final = 1000
"""Entries that a successor may lack."""


class Maintenance:
    """``members`` returns the configured nodes with their incarnations once all of them were met, else None."""

    def __init__(
        self,
        replicas: Replicas,
        *,
        cluster_id: str,
        slots: int,
        groups: int,
        copies: int,
        members: Callable[[], list[Node] | None],
        room: Room,
        now: Callable[[], float],
    ) -> None:
        self._replicas = replicas
        self._room = room
        self._cluster_id = cluster_id
        self._slots = slots
        self._groups = groups
        self._copies = copies
        self._members = members
        self._now = now
        self._asked: dict[int, float] = {}
        self._led_since: dict[int, float] = {}
        self._transfer_due: dict[int, float] = {}
        self._flight_due: dict[int, float] = {}
        self._succession: tuple[ShardMap | None, Succession | None] = (None, None)

    def run(self, shard_map: ShardMap | None) -> None:
        """Propose what is due. Called about ten times a second with the node's copy of the map."""
        meta = self._replicas.get(META_GROUP)
        if meta is not None and self._replicas.meta.map is None and self._may_propose(meta):
            self._form(meta)
        if shard_map is not None:
            for number, replica in self._replicas.data.items():
                self._tend(number, replica, shard_map)
            succession = self._succession_of(shard_map)
            for group in shard_map.groups:
                replica_here = self._replicas.get(group.id)
                if replica_here is not None:
                    self._give_way(replica_here, succession.of(group, replica_here.node))

    def _succession_of(self, shard_map: ShardMap) -> Succession:
        known, succession = self._succession
        if succession is None or known is not shard_map:
            succession = Succession(shard_map)
            self._succession = (shard_map, succession)
        return succession

    def _give_way(self, group: RaftGroup, order: Voters) -> None:
        """Leaderships are where the map wants them: the first of ``order`` that is up leads, once it holds the log.

        A node whose disk is full leads nothing while another voter can.
        """
        now = self._now()
        if not group.ready():
            self._led_since.pop(group.group, None)
            return
        due = max(self._led_since.setdefault(group.group, now) + _SETTLED, self._transfer_due.get(group.group, 0.0))
        if self._room.here.disk:
            able = [node for node in group.voters if node != group.node and self._can_lead(group, node)]
            if able and now >= self._flight_due.get(group.group, 0.0):
                self._flight_due[group.group] = now + _BETWEEN_FLIGHTS
                best = max(able, key=group.core.match_index)
                group.transfer(next((node for node in order if node in able), best))
        elif now >= due:
            wanted = next((node for node in order if node == group.node or self._is_up(group, node)), group.node)
            if wanted != group.node and self._can_lead(group, wanted):
                self._transfer_due[group.group] = now + _BETWEEN_TRANSFERS
                group.transfer(wanted)

    def _is_up(self, group: RaftGroup, node: int) -> bool:
        return node in group.voters and not self._room.of(node).disk and group.answers(node)

    def _can_lead(self, group: RaftGroup, node: int) -> bool:
        # Nothing is written while a leader waits for its successor to catch up.
        return self._is_up(group, node) and group.core.match_index(node) + _MAX_LAG >= group.log.last_index

    def _form(self, meta: RaftGroup) -> None:
        members = self._members()
        if members is not None:
            first = initial_map(self._cluster_id, members, self._groups, self._slots, self._copies)
            self._propose(meta, FormCluster(pack(first.to_wire())))

    def _tend(self, number: int, replica: Replica, shard_map: ShardMap) -> None:
        store = replica.store
        if not store.genesis:
            # Every group has its first slots before any can be moved away, so epoch 1 is still true here.
            if self._may_propose(replica.group):
                self._propose(replica.group, Genesis(tuple(shard_map.slots_of(number))))
            return
        due = store.next_expiry()
        if due is not None and self._may_propose(replica.group) and due <= replica.group.time():
            self._propose(replica.group, Tick())

    def _may_propose(self, group: RaftGroup) -> bool:
        """Asked before a command is made: a map of all slots takes long."""
        return group.leads() and self._asked.get(group.group, 0.0) <= self._now()

    def _propose(self, group: RaftGroup, op: Command) -> None:
        self._asked[group.group] = self._now() + _PATIENCE

        def done(_: list[Result]) -> None:
            self._asked.pop(group.group, None)

        group.propose([op], op.size(), done)


async def hand_over(replicas: Replicas, clock: Clock, patience: float) -> None:
    """Give the leaderships of this node away, within ``patience`` seconds.

    One that comes back stays: then the other nodes are stopping too.
    """
    until = clock.now() + patience
    terms: dict[int, int] = {}
    while True:
        leading = [
            group
            for group in replicas.all()
            if group.leads()
            and len(group.voters) > 1
            and terms.setdefault(group.group, group.status().term) == group.status().term
        ]
        if not leading or clock.now() >= until:
            return
        for group in leading:
            target = group.best_target()
            if target:
                group.transfer(target)
        await asyncio.sleep(_BETWEEN_LOOKS)
