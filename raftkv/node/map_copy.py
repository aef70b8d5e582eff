"""This node's copy of the shard map: how it is obtained, what a newer one causes, and what other nodes are told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgpack

from raftkv.errors import CorruptData
from raftkv.node import messages
from raftkv.node.maps import Maps
from raftkv.node.replicas import Replicas
from raftkv.node.router import Router
from raftkv.peer.links import Links
from raftkv.storage.folder import MAP_AT, DataFolder
from raftkv.store.codec import unpack
from raftkv.store.meta_state import MetaState
from shards.map import META_GROUP, Node, ShardMap

log = logging.getLogger(__name__)


class MapCopy:
    """``maps`` compares it with those of other nodes. ``dial``: where a node of the map is reached.

    ``removed`` is called when a map says that this node is no longer a member.
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
        dial: Callable[[Node], str],
        removed: Callable[[], None],
    ) -> None:
        self._node = node
        self._cluster_id = cluster_id
        self._folder = folder
        self._replicas = replicas
        self._router = router
        self._links = links
        self._maps = maps
        self._dial = dial
        self._removed = removed
        self._saved = True

    @property
    def current(self) -> ShardMap | None:
        """None until this node knows one."""
        return self._router.map

    def load(self) -> None:
        """Begin with what the last life of this node has saved."""
        saved = self._folder.load_map()
        if saved is not None:
            try:
                self.take(saved)
            except messages.Malformed as problem:
                # Only a hint, perhaps of another version: the meta group or a peer tells the map anew.
                damage = CorruptData(self._folder.map_path, MAP_AT, str(problem))
                log.warning("the saved shard map is not used: %s", damage)

    def take(self, data: bytes) -> None:
        """A copy from another node, or from this node's own folder. Raises Malformed."""
        try:
            shard_map = ShardMap.from_wire(unpack(data))
        except ValueError as problem:  # MapError is one
            raise messages.Malformed(f"malformed shard map: {problem}") from None
        if shard_map.cluster_id != self._cluster_id:
            raise messages.Malformed(f"shard map of another cluster, {shard_map.cluster_id}")
        self._take_newer(shard_map)

    def look_at_meta(self) -> None:
        """This node's replica of the meta group may have a newer map than the copy in use."""
        known = self._replicas.meta.map
        if known is not None:
            self._take_newer(known)

    def keep(self, shard_map: ShardMap) -> None:
        """Use this map, if it is newer, and have it on disk now. Raises OSError."""
        self._take_newer(shard_map)
        self._save()

    def try_to_save(self) -> None:
        """Have it on disk for the next start, if that is possible."""
        try:
            self._save()
        except OSError as problem:
            log.warning("the shard map cannot be saved: %s", problem)

    def message(self) -> list[Any]:
        """For other nodes."""
        assert self.current is not None
        return ["map", msgpack.packb(self.current.to_wire())]

    def meta_state(self) -> MetaState | None:
        """The meta group's state while this node leads it and knows all of it."""
        meta, store = self._replicas.get(META_GROUP), self._replicas.meta
        return store.state if meta is not None and meta.ready() and store.map is not None else None

    def _save(self) -> None:
        if not self._saved and self.current is not None:
            self._folder.save_map(msgpack.packb(self.current.to_wire()))
            self._saved = True

    def _take_newer(self, shard_map: ShardMap) -> None:
        if self.current is None or shard_map.epoch > self.current.epoch:
            self._use(shard_map)

    def _use(self, shard_map: ShardMap) -> None:
        if self._node in shard_map.removed:
            self._removed()
            return
        before = self.current
        self._router.on_map(shard_map)
        self._saved = False
        if before is None or (before.nodes, before.groups) != (shard_map.nodes, shard_map.groups):
            self.try_to_save()
        self._meet(before, shard_map)
        for group in shard_map.groups_on(self._node):
            self._replicas.ensure(group.id, group.founders)
        for group in shard_map.groups:
            replica = self._replicas.get(group.id)
            if replica is not None:
                replica.set_learners(group.learners)
        self._maps.use(shard_map)
        self._links.send_to_all(self.message() if self.meta_state() is not None else ["epoch", *self._maps.own])
        log.info("shard map of epoch %d in use", shard_map.epoch)

    def _meet(self, before: ShardMap | None, shard_map: ShardMap) -> None:
        """Have links to the nodes of the map, where it has moved them, and to no removed one."""
        known = {} if before is None else {node.id: node.peer_address for node in before.nodes}
        for node in shard_map.nodes:
            if node.id == self._node:
                continue
            if node.id not in self._links.peers:
                self._links.add_peer(node.id, self._dial(node))
            elif known.get(node.id) != node.peer_address:
                self._links.set_dial(node.id, self._dial(node))
        for peer in self._links.peers:
            if peer in shard_map.removed:
                self._links.remove_peer(peer)
