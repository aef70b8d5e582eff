"""Nodes that stop by themselves: whether they have a reason, and which of them must not come back."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Literal

from faults.sim.cluster import SimNode
from faults.sim.disk import of_system
from raftkv.errors import CorruptData
from raftkv.node.node import NodeRefused
from raftkv.raft.log import BrokenInvariant

Ruin = Literal["flipped bit", "wiped disk"]


class Stops:
    """``report(kind, text)`` is told of those without a reason."""

    def __init__(self, nodes: Iterable[int], report: Callable[[str, str], None]) -> None:
        self.ruined: dict[int, Ruin] = {}
        """Nodes that must not come back, and why."""
        self._excused: dict[int, set[str]] = {node: set() for node in nodes}
        self._judged: set[tuple[int, int]] = set()
        self._report = report

    def excuse(self, node: int, what: Literal["sync", "full"]) -> None:
        """Its disk is sick, so it may stop."""
        self._excused[node].add(what)

    def blame(self, node: int) -> None:
        """Its syncs work again."""
        self._excused[node].discard("sync")

    def judge(self, node: SimNode) -> None:
        """If it has stopped by itself: with good reason?"""
        if node.state not in ("failed", "refused") or (node.id, node.starts) in self._judged:
            return
        self._judged.add((node.id, node.starts))
        problem, ruin, excused = node.fatal, self.ruined.get(node.id), self._excused[node.id]
        if ruin == "wiped disk" and isinstance(problem, NodeRefused):
            return
        if ruin == "flipped bit" and isinstance(problem, CorruptData):
            return
        sick = of_system(problem) or of_system(problem.__cause__ if problem else None)
        if excused and sick and not isinstance(problem, CorruptData | NodeRefused | BrokenInvariant):
            if isinstance(problem, OSError) and problem.errno == errno.ENOSPC and "full" not in excused:
                self._report("stopped", f"n{node.id} found no space on a roomy disk: {problem!r}")
            return
        self._report("stopped", f"n{node.id} {node.state} without a reason: {problem!r}")

    def end(self, nodes: Iterable[SimNode]) -> None:
        """After the cluster has converged: what became of each node, ruined ones included."""
        for node in nodes:
            self.judge(node)
            if node.id in self.ruined and node.state != "refused":
                self._report("ruin", f"n{node.id} has a {self.ruined[node.id]} and is {node.state}")
