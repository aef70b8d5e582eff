"""What a node had made durable, or had told others, must be on its disk after any crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from faults.sim.cluster import DATA, WAL_FOLDER, SimCluster, SimNode
from faults.sim.worker import SimWorker
from raftkv.errors import RaftKVError
from raftkv.raft import RaftGroup
from raftkv.raft.messages import Type
from raftkv.storage.folder import DataFolder
from raftkv.storage.wal import Wal
from raftkv.storage.wal_recovery import GroupState

Report = Callable[[str, str], None]


@dataclass(slots=True)
class _Durable:
    """Of one node at its crash: group -> (index -> term) of the entries on stable storage, and what lies below them."""

    entries: dict[int, dict[int, int]] = field(default_factory=dict)
    bases: dict[int, int] = field(default_factory=dict)


class Promises:
    """``votes``: (group, term, candidate) -> the voters that told it so, over all their lives."""

    def __init__(self, cluster: SimCluster, report: Report) -> None:
        self.votes: dict[tuple[int, int, int], set[int]] = {}
        self.crashes = 0
        """WALs that were read after a crash."""
        self._cluster = cluster
        self._report = report
        self._told: dict[tuple[int, int], tuple[int, int]] = {}
        self._durable: dict[int, _Durable] = {}
        self.lost_disks: set[int] = set()
        """Nodes whose disks keep no promise any more."""
        cluster.on_sent.append(self._sent)

    def lost(self, node: int) -> None:
        """The disk of ``node`` keeps no promise any more."""
        self.lost_disks.add(node)

    def _sent(self, node: SimNode, peer: int, message: list[Any]) -> None:
        kind = message[1] if len(message) > 1 else None
        if kind not in (Type.VOTE, Type.VOTE_REPLY) or type(message[0]) is not int:
            return
        group, term = message[0], message[2]
        candidate = node.id if kind == Type.VOTE else peer
        self.votes.setdefault((group, term, candidate), {candidate}).add(node.id)
        known = self._told.get((node.id, group), (0, 0))
        if known[0] == term and known[1] != candidate:
            self._report("vote", f"{node.name} votes for n{known[1]} and n{candidate} in term {term} of group {group}")
        if term >= known[0]:
            self._told[node.id, group] = (term, candidate)

    def holds(self, node: int, group: int, index: int, term: int) -> bool:
        """Whether a node that does not run may have that entry on its disk; yes if nobody saw how it ended."""
        durable = self._durable.get(node)
        if durable is None or group not in durable.entries:
            return True
        return index <= durable.bases[group] or durable.entries[group].get(index) == term

    def before_crash(self, node: SimNode) -> None:
        """Note what must survive. Just before it: a log may replace what is not committed."""
        self._durable.pop(node.id, None)
        if node.node is None or node.id in self.lost_disks:
            return
        durable = self._durable[node.id] = _Durable()
        for group in node.replicas():
            log = group.log
            held = log.between(log.base_index + 1, log.durable_index + 1)
            durable.entries[group.group] = {index: term for _, index, term in held}
            durable.bases[group.group] = log.base_index

    def after_crash(self, node: SimNode) -> None:
        """Read a copy of the disk as the next start would."""
        durable = self._durable.get(node.id)
        if durable is None or node.id in self.lost_disks:
            return
        self.crashes += 1
        fs, cluster = node.disk.copy().mount(), self._cluster.config(node.id).cluster.id
        try:
            folder = DataFolder.open(fs, DATA, cluster, node.id, random.Random(0))
            wal = Wal.open(
                fs,
                SimWorker(),
                WAL_FOLDER,
                lambda problem: self._report("wal", f"the log of {node.name} died at once: {problem!r}"),
                identity=folder.incarnation.encode(),
                segment_bytes=self._cluster.settings.segment_bytes,
                must_exist=True,
            )
        except (RaftKVError, OSError) as problem:
            self._report("wal", f"{node.name} cannot read its log after a crash: {problem}")
            return
        for group, entries in durable.entries.items():
            state = wal.recovered.get(group, GroupState())
            found = {index: term for _, index, term in state.entries}
            self._compare(node, group, entries, state.snapshot_index, found)
        for (number, group), (term, candidate) in self._told.items():
            state = wal.recovered.get(group, GroupState())
            if number == node.id and (state.term < term or (state.term == term and state.vote != candidate)):
                self._report("wal", f"{node.name} has forgotten its vote for n{candidate} in term {term} of {group}")

    def after_start(self, node: SimNode, group: RaftGroup) -> None:
        """A replica has just come up: its log must hold what was durable when the node crashed."""
        durable = self._durable.get(node.id)
        if durable is not None and node.id not in self.lost_disks:
            log = group.log
            found = {index: term for _, index, term in log.between(log.base_index + 1, log.last_index + 1)}
            self._compare(node, group.group, durable.entries.pop(group.group, {}), log.base_index, found)

    def _compare(self, node: SimNode, group: int, entries: dict[int, int], base: int, found: dict[int, int]) -> None:
        gone = [index for index, term in entries.items() if index > base and found.get(index) != term]
        if gone:
            self._report("durability", f"{node.name} has lost durable entry {gone[0]} of group {group} in a crash")
