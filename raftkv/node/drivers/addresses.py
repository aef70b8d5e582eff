"""Members that come back at other addresses: each tells its own, and the meta group's leader has the map changed.

A node is heard of itself alone, on a connection on which it has proven who it is. It is looked for elsewhere only while
it does not answer where the map has it, so a second process of that name changes nothing while the first one lives; and
the map gets a place only once the leader has reached the node there, with a proof of its own. While the map is behind,
whoever hears a member dials it at both places by turns: so a majority that has moved finds itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

from raftkv.log_limit import limited
from raftkv.node.drivers.internal_client import Ask, Failed, Leading, meta_command
from shards.map import Node, ShardMap

log = logging.getLogger(__name__)

_FRESH: Final = 5.0
"""Seconds for which the map is changed on a member's word; it repeats it every second."""

Pair = tuple[str, str]
"""Where a node is reached: by clients, by nodes."""


class Peers(Protocol):
    """See :class:`raftkv.peer.links.Links`."""

    def up(self, node: int) -> bool: ...

    def missed(self, node: int) -> bool: ...

    def dialled(self, node: int) -> str: ...

    def set_dial(self, node: int, address: str) -> None: ...

    def send(self, node: int, message: list[Any]) -> None: ...

    def send_to_all(self, message: list[Any]) -> None: ...


class Addresses:
    """``own``: where this node is reached, as it is configured. ``current``: its copy of the map, None before it knows
    one. ``dial``: where a node of the map is dialled. ``leading``: the meta group's state while this node leads it.
    """

    def __init__(
        self,
        node: int,
        own: Pair,
        *,
        peers: Peers,
        current: Callable[[], ShardMap | None],
        dial: Callable[[Node], str],
        leading: Leading,
        ask: Ask,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._node = node
        self._own = own
        self._peers = peers
        self._current = current
        self._dial = dial
        self._leading = leading
        self._ask = ask
        self._now = now
        self._rng = rng
        self._told: dict[int, tuple[Pair, float]] = {}
        """What members have said last, and when, where the map says something else."""
        self._task: asyncio.Task[None] | None = None

    def greet(self, peer: int) -> None:
        """The link to ``peer`` has come up."""
        if self._entry(self._node, self._own) is not None:
            self._peers.send(peer, self._message())

    def hear(self, peer: int, address: str, peer_address: str) -> None:
        """``peer`` says where it is reached."""
        entry = self._entry(peer, (address, peer_address))
        if entry is None:
            self._told.pop(peer, None)
            return
        self._told[peer] = (address, peer_address), self._now()
        self._look_for(peer, entry)

    def run(self) -> None:
        """Tell, look for members, have the map changed, where it is behind. Called about once a second."""
        if self._entry(self._node, self._own) is not None:
            self._told[self._node] = self._own, self._now()
            self._peers.send_to_all(self._message())
        for node, (pair, at) in list(self._told.items()):
            entry = self._entry(node, pair)
            if entry is None or self._is_back(node, entry):
                del self._told[node]
                continue
            if node != self._node:
                self._look_for(node, entry)
            if self._leading() is not None and self._now() < at + _FRESH and self._answers(node, entry):
                self._change(entry, pair)

    def close(self) -> None:
        """Stop; the next leader hears it again."""
        if self._task is not None:
            self._task.cancel()

    def _message(self) -> list[Any]:
        return ["address", *self._own]

    def _entry(self, node: int, pair: Pair) -> Node | None:
        """What the map has of ``node``, if it has something else than ``pair``."""
        shard_map = self._current()
        entry = None if shard_map is None else shard_map.find(node)
        return None if entry is None or (entry.address, entry.peer_address) == pair else entry

    def _moved(self, entry: Node) -> str:
        """Where the node is dialled if what it says is true."""
        (_, peer_address), _ = self._told[entry.id]
        return self._dial(replace(entry, peer_address=peer_address))

    def _is_back(self, node: int, entry: Node) -> bool:
        """Whether it answers where the map has it, and what was said is not true, or not any more."""
        home = self._dial(entry)
        return node != self._node and self._peers.up(node) and self._peers.dialled(node) == home != self._moved(entry)

    def _look_for(self, node: int, entry: Node) -> None:
        """Nobody has answered where ``node`` was dialled: dial it at the other place."""
        if self._peers.missed(node):
            moved = self._moved(entry)
            self._peers.set_dial(node, self._dial(entry) if self._peers.dialled(node) == moved else moved)

    def _answers(self, node: int, entry: Node) -> bool:
        """Whether it is reached at what it says: it has proven there who it is."""
        return node == self._node or (self._peers.up(node) and self._peers.dialled(node) == self._moved(entry))

    def _change(self, entry: Node, pair: Pair) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell_meta(entry, pair))

    async def _tell_meta(self, entry: Node, pair: Pair) -> None:
        source = limited(f"node {entry.id}")
        try:
            await self._ask(meta_command(self._rng, "readdress node", entry.id, entry.incarnation, *pair))
            log.info("node %d is reached at %s and %s now", entry.id, *pair, extra=source)
        except Failed as failure:
            log.warning("node %d says that it is reached at %s and %s: %s", entry.id, *pair, failure, extra=source)
