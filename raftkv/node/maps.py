"""Whether the nodes' copies of the shard map agree.

A copy may be behind for a moment, while a newer one is on its way. One that stays behind, or that has the epoch of
another node's and says something else, is a problem: operations take detours, and replicas are missing or left over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from raftkv.api.status import Problem
from raftkv.store.meta_state import map_digest
from shards.map import ShardMap

PATIENCE: Final = 10.0
"""Seconds for which copies may differ."""

Told = tuple[int, bytes]
"""Epoch and digest of a map; (0, b"") without one."""


def told(shard_map: ShardMap | None) -> Told:
    """What a node tells others of its map."""
    if shard_map is None:
        return 0, b""
    return shard_map.epoch, map_digest(shard_map)


@dataclass(slots=True)
class _Peer:
    """``lower``: the lower one of both epochs. ``since``: when that had risen last, or the maps had been the same."""

    told: Told
    lower: int
    since: float


class Maps:
    """``now``: monotonic time in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._map: ShardMap | None = None
        self.own: Told = told(None)
        self._peers: dict[int, _Peer] = {}

    def use(self, shard_map: ShardMap) -> None:
        """This node's map. Cheap if it is the one of the last call."""
        if shard_map is not self._map:
            self._map = shard_map
            self.own = told(shard_map)
            for peer, one in self._peers.items():
                self.hear(peer, one.told)

    def hear(self, peer: int, its: Told) -> None:
        """A peer tells what map it has."""
        lower, before = min(its[0], self.own[0]), self._peers.get(peer)
        if before is None or its == self.own or lower > before.lower:
            self._peers[peer] = _Peer(its, lower, self._now())
        else:
            before.told = its

    def forget(self, peer: int) -> None:
        """It is not in contact any more."""
        self._peers.pop(peer, None)

    def problems(self) -> Iterator[Problem]:
        """Peers whose maps have differed for long."""
        epoch = self.own[0]
        for peer, one in sorted(self._peers.items()):
            if one.told == self.own or self._now() < one.since + PATIENCE:
                continue
            if one.told[0] == epoch:
                text = f"its shard map and that of node {peer} are both of epoch {epoch}, and differ"
            else:
                text = f"its shard map is of epoch {epoch}, that of node {peer} of epoch {one.told[0]}"
            yield Problem("map_differs", f"{text}, for more than {PATIENCE:g} s", node=peer)
