"""This node's copy of the shard map: how it is obtained, what a newer one causes, and what other nodes are told.

A map is confirmed if the meta group decided it, as far as this node can tell: its own replica of that group has applied
it, the group's leader has said so when it was asked, or an earlier life of this node has saved it. A map that another
node merely sends is used at once for routing, and its nodes are dialled, since what is routed wrongly is refused where
it arrives. All that lasts waits until it is confirmed: it is saved, told to other nodes and clients, replicas are
hosted by it, links given up, and this node ends if it says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from raftkv.clock import Clock
from raftkv.commands.meta import ConfirmMap
from raftkv.commands.results import MapReport
from raftkv.errors import CorruptData
from raftkv.log_limit import limited
from raftkv.node import messages
from raftkv.node.drivers.internal_client import Ask, Failed
from raftkv.node.maps import Maps
from raftkv.node.replicas import Replicas
from raftkv.node.router import Router
from raftkv.peer.links import Links
from raftkv.storage.folder import MAP_AT, DataFolder
from raftkv.store.codec import unpack
from raftkv.store.meta_state import MetaState, map_digest
from shards.map import META_GROUP, Node, ShardMap

log = logging.getLogger(__name__)

_PATIENCE: Final = 1.0
"""Seconds before the meta group is asked again when it did not answer."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A map that is not confirmed, and which node has sent it."""

    map: ShardMap
    peer: int


class MapCopy:
    """``maps`` compares it with those of other nodes. ``dial``: where a node of the map is reached. ``ask`` reaches the
    meta group's leader.

    ``removed`` is called when a map says that this node is no longer a member. ``fatal`` stops the node.
    """

    def __init__(
        self,
        node: int,
        cluster_id: str,
        *,
        folder: DataFolder,
        replicas: Replicas,
        router: Router,
        links: Links,
        maps: Maps,
        ask: Ask,
        clock: Clock,
        dial: Callable[[Node], str],
        removed: Callable[[], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._node = node
        self._cluster_id = cluster_id
        self._folder = folder
        self._replicas = replicas
        self._router = router
        self._links = links
        self._maps = maps
        self._ask = ask
        self._clock = clock
        self._dial = dial
        self._removed = removed
        self._fatal = fatal
        self._saved = True
        self._told: _Told | None = None
        self._task: asyncio.Task[None] | None = None
        self._due = 0.0
        self.confirmed: ShardMap | None = None
        """The latest confirmed map; None until there is one."""

    @property
    def current(self) -> ShardMap | None:
        """What is routed by; None until this node knows a map."""
        return self._router.map

    # -- where maps come from

    def load(self) -> None:
        """Begin with what the last life of this node has saved."""
        saved = self._folder.load_map()
        if saved is not None:
            try:
                self._confirm(self._decoded(saved))
            except messages.Malformed as problem:
                # Only a hint, perhaps of another version: the meta group or a peer tells the map anew.
                damage = CorruptData(self._folder.map_path, MAP_AT, str(problem))
                log.warning("the saved shard map is not used: %s", damage)

    def take(self, peer: int, data: bytes) -> None:
        """A map that ``peer`` has sent. Raises Malformed."""
        shard_map = self._decoded(data)
        if self.confirmed is not None and shard_map.slots != self.confirmed.slots:
            raise messages.Malformed(f"shard map of {shard_map.slots} slots, not {self.confirmed.slots}")
        if self.current is None or shard_map.order > self.current.order:
            self._told = _Told(shard_map, peer)
            self._route(shard_map)

    def look_at_meta(self) -> None:
        """This node's replica of the meta group may have a newer map than the copy in use."""
        known = self._replicas.meta.map
        if known is not None:
            self._confirm(known)

    def keep(self, shard_map: ShardMap) -> None:
        """The meta group's leader has said this map: use it, if it is newer, and have it on disk. Raises OSError."""
        self._confirm(shard_map)
        self._save()

    def run(self) -> None:
        """Have the meta group's leader confirm what another node has sent. Called ten times a second."""
        asking = self._task is not None and not self._task.done()
        if self._told is not None and not asking and self._clock.now() >= self._due:
            self._task = asyncio.get_running_loop().create_task(self._ask_about(self._told))

    def close(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()

    # -- who is told

    def message(self) -> list[Any]:
        """For other nodes, once there is a confirmed map."""
        assert self.confirmed is not None
        return ["map", msgpack.packb(self.confirmed.to_wire())]

    def meta_state(self) -> MetaState | None:
        """The meta group's state while this node leads it and knows all of it."""
        meta, store = self._replicas.get(META_GROUP), self._replicas.meta
        return store.state if meta is not None and meta.ready() and store.map is not None else None

    def try_to_save(self) -> None:
        """Have it on disk for the next start, if that is possible."""
        try:
            self._save()
        except OSError as problem:
            log.warning("the shard map cannot be saved: %s", problem)

    def _save(self) -> None:
        if not self._saved and self.confirmed is not None:
            self._folder.save_map(msgpack.packb(self.confirmed.to_wire()))
            self._saved = True

    def _decoded(self, data: bytes) -> ShardMap:
        try:
            shard_map = ShardMap.from_wire(unpack(data))
        except ValueError as problem:  # MapError is one
            raise messages.Malformed(f"malformed shard map: {problem}") from None
        if shard_map.cluster_id != self._cluster_id:
            raise messages.Malformed(f"shard map of another cluster, {shard_map.cluster_id}")
        return shard_map

    # -- what others have sent

    async def _ask_about(self, told: _Told) -> None:
        try:
            report = (await self._ask(ConfirmMap(META_GROUP, map_digest(told.map)))).answer
            assert isinstance(report, MapReport)
            answer = self._decoded(report.map) if report.map else told.map
        except (Failed, messages.Malformed) as failure:
            self._due = self._clock.now() + _PATIENCE
            log.info("a shard map is not confirmed yet: %s", failure, extra=limited("the meta group"))
            return
        try:
            self._confirm(answer)
            if self._told is told:
                self._deny(told)
        except Exception as error:
            self._fatal(error)
            raise

    def _deny(self, told: _Told) -> None:
        """The meta group's leader has another map, and not a later one."""
        log.warning(
            "dropped a shard map of epoch %d and index %d that node %d had sent: the meta group has none like it",
            told.map.epoch,
            told.map.index,
            told.peer,
            extra=limited(f"node {told.peer}"),
        )
        self._told = None
        if self.confirmed is not None:
            self._route(self.confirmed)
            self._meet(self.confirmed, told.map)

    # -- what a map causes

    def _route(self, shard_map: ShardMap) -> None:
        self._router.on_map(shard_map, self.confirmed)
        for node in shard_map.nodes:
            if node.id != self._node and node.id not in self._links.peers:
                self._links.add_peer(node.id, self._dial(node))

    def _meet(self, shard_map: ShardMap, *earlier: ShardMap | None) -> None:
        """Have links to nodes where they are now, and none to removed ones or to those that only ``earlier`` maps had.

        A node that stays where it was is left alone: it may be looked for at another place.
        """
        known = {(node.id, node.peer_address) for one in earlier if one is not None for node in one.nodes}
        now = {(node.id, node.peer_address) for node in shard_map.nodes}
        gone = {node for node, _ in known - now}
        for node in shard_map.nodes:
            if node.id in gone and node.id in self._links.peers:
                self._links.set_dial(node.id, self._dial(node))
            gone.discard(node.id)
        for peer in self._links.peers:
            if peer in shard_map.removed or peer in gone:
                self._links.remove_peer(peer)

    def _confirm(self, shard_map: ShardMap) -> None:
        before, over = self.confirmed, None
        if before is not None and shard_map.order <= before.order:
            return
        if self._told is not None and self._told.map.order <= shard_map.order:
            over, self._told = self._told, None
        if self._node in shard_map.removed:
            self._removed()
            return
        self.confirmed = shard_map
        self._route(shard_map if self._told is None else self._told.map)
        self._saved = False
        if before is None or (before.nodes, before.groups) != (shard_map.nodes, shard_map.groups):
            self.try_to_save()
        self._meet(shard_map, before, None if over is None else over.map)
        for group in shard_map.groups_on(self._node):
            self._replicas.ensure(group.id, group.founders)
        for group in shard_map.groups:
            replica = self._replicas.get(group.id)
            if replica is not None:
                replica.set_learners(group.learners)
        self._maps.use(shard_map)
        self._links.send_to_all(self.message() if self.meta_state() is not None else ["epoch", *self._maps.own])
        log.info("shard map of epoch %d in use", shard_map.epoch)
