"""Which nodes have room for new data: this one, and the others as they told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from raftkv.raft import RaftGroup


class Full(NamedTuple):
    """Which of a node's disk and memory are full."""

    disk: bool = False
    memory: bool = False


class Room:
    """``tell(node, message)`` sends a message to another node; ``peers`` are all of them."""

    def __init__(self, node: int, peers: Callable[[], Iterable[int]], tell: Callable[[int, list[Any]], None]) -> None:
        self._node = node
        self._peers = peers
        self._tell = tell
        self._full = {node: Full()}

    @property
    def here(self) -> Full:
        return self._full[self._node]

    def look(self, full: Full) -> None:
        """Set this node's own state; the other nodes are told if it has changed."""
        if full != self.here:
            self._full[self._node] = full
            for peer in self._peers():
                self.greet(peer)

    def greet(self, peer: int) -> None:
        """Tell one node, on a new link to it."""
        self._tell(peer, ["room", *self.here])

    def hear(self, peer: int, full: Full) -> None:
        """``peer`` has told of itself."""
        self._full[peer] = full

    def of(self, node: int) -> Full:
        """What is known of ``node``; one that has not told anything yet has room."""
        return self._full.get(node, Full())

    def refusal(self, group: RaftGroup) -> str:
        """Why a group that is led here takes no new data; empty if it does.

        One full memory is enough: that node would end, come back with the same data and end again. Of full disks it
        takes a majority, which would soon commit nothing. A minority is spared: it hands its leaderships over, and its
        logs wait for room if need be.
        """
        full = [node for node in group.voters if self.of(node).memory]
        if full:
            return _told("memory", full)
        full = [node for node in group.voters if self.of(node).disk]
        if not full:
            return ""
        able = [node for node in group.voters if node not in full and (node == self._node or group.answers(node))]
        return "" if 2 * len(able) > len(group.voters) else _told("disk", full)


def _told(what: str, nodes: Iterable[int]) -> str:
    return f"the {what} of node {', '.join(map(str, nodes))} is nearly full; reads and deletes go on"
