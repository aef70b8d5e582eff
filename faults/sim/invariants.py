"""What must hold at every moment inside the nodes, whatever clients see of it.

- A term of a group has one leader, and that leader holds all that was committed in earlier terms.
- An entry that one replica has committed is the same on every replica, for ever.
- State machines that have applied the same entries are equal.
- A crash leaves a WAL that can be read and holds all that had been announced as durable.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

from faults.sim.cluster import WAL_FOLDER, SimCluster, SimNode
from faults.sim.worker import SimWorker
from raftkv.errors import RaftKVError
from raftkv.raft import RaftGroup
from raftkv.storage.wal import Wal
from raftkv.store.meta import MetaStore
from raftkv.store.records import Store

_DIGEST_EVERY: Final = 16
"""Entries between comparisons of whole states: a digest reads all of a state."""


class _Committed(NamedTuple):
    """An entry, and the lowest term in which some replica was first seen to have it committed."""

    term: int
    checksum: int
    seen_in: int


@dataclass(slots=True)
class _Seen:
    """Up to where one replica has been looked at."""

    commit: int = 0
    lead_term: int = 0


@dataclass(frozen=True, slots=True)
class _Promised:
    """What a node's WAL had announced as durable: group -> (index -> term), and all hard states if all was durable."""

    incarnation: str
    entries: dict[int, dict[int, int]]
    hard_states: dict[int, tuple[int, int]] | None


class Invariants:
    """Looks at all replicas after each turn and each applied entry. ``problems`` has what it found."""

    def __init__(self, cluster: SimCluster) -> None:
        self.problems: list[str] = []
        self.leaderships = 0
        """Terms that had a leader, all groups together."""
        self.digests = 0
        """Comparisons of whole states."""
        self.crashes = 0
        """WALs that were read after a crash."""
        self._cluster = cluster
        self._leaders: dict[tuple[int, int], tuple[int, int]] = {}
        self._log: dict[int, dict[int, _Committed]] = {}
        self._last: dict[int, int] = {}
        self._states: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._seen: dict[tuple[int, int, int], _Seen] = {}
        self._promised: dict[int, _Promised] = {}
        self._lost: set[int] = set()
        cluster.on_turn.append(self._look)
        cluster.on_applied.append(self._applied)

    def report(self, kind: str, what: str) -> None:
        """Something is wrong."""
        line = f"{kind}: {what}"
        if line not in self.problems:
            self.problems.append(line)
            self._cluster.trace.note(f"PROBLEM {line}")

    # -- replicas

    def _look(self, node: SimNode) -> None:
        if node.node is None:
            return
        for group in node.node._replicas.all():
            key = (node.id, node.starts, group.group)
            seen = self._seen.get(key)
            if seen is None:
                seen = self._seen[key] = _Seen()
            commit = group.core.commit_index()
            if commit != seen.commit:
                self._look_at_commits(node, group, seen.commit, commit)
                seen.commit = commit
            if group.leads() and group._lead_term != seen.lead_term:
                seen.lead_term = group._lead_term
                self._look_at_leader(node, group)

    def _look_at_commits(self, node: SimNode, group: RaftGroup, before: int, commit: int) -> None:
        known = self._log.setdefault(group.group, {})
        term_now = group.core.term()
        for command, index, term in group.log.between(max(before, group.log.base_index) + 1, commit + 1):
            checksum = zlib.crc32(command)
            old = known.get(index)
            if old is None:
                known[index] = _Committed(term, checksum, term_now)
                self._last[group.group] = max(index, self._last.get(group.group, 0))
            elif (old.term, old.checksum) != (term, checksum):
                self.report(
                    "committed", f"entry {index} of group {group.group} is of term {old.term}, on {node.name} {term}"
                )
            elif old.seen_in > term_now:
                known[index] = old._replace(seen_in=term_now)

    def _look_at_leader(self, node: SimNode, group: RaftGroup) -> None:
        number, term = group.group, group._lead_term
        self.leaderships += 1
        me = (node.id, node.starts)
        if self._leaders.setdefault((number, term), me) != me:
            other = self._leaders[number, term][0]
            self.report("two leaders", f"{node.name} and n{other} both lead group {number} in term {term}")
        # All that was committed in an earlier term; later ones do not bind a leader that slept meanwhile.
        known, index = self._log.get(number, {}), self._last.get(number, 0)
        while index in known and known[index].seen_in >= term:
            index -= 1
        entry = known.get(index)
        held = group.log.term_at(index)
        if entry is not None and index > group.log.base_index and held != entry.term:
            self.report("leader", f"{node.name} leads group {number} in term {term} without committed entry {index}")

    def _applied(self, node: SimNode, group: RaftGroup, index: int) -> None:
        if index % _DIGEST_EVERY == 0:
            self.compare(node, group, index)

    def compare(self, node: SimNode, group: RaftGroup, index: int) -> None:
        """The state of a replica that has just applied ``index`` against those of the others."""
        digest = cast("Store | MetaStore", group.machine).digest()
        self.digests += 1
        first, other = self._states.setdefault((group.group, index), (digest, node.id))
        if first != digest:
            self.report("state", f"{node.name} and n{other} differ in group {group.group} at entry {index}")

    # -- disks

    def lost(self, node: int) -> None:
        """The disk of ``node`` keeps no promise any more."""
        self._lost.add(node)

    def before_crash(self, node: SimNode) -> None:
        """Note what must survive."""
        self._promised.pop(node.id, None)
        if node.node is None or node.id in self._lost:
            return
        wal, entries = node.node._wal, {}
        for group in node.node._replicas.all():
            log = group.log
            held = log.between(log.base_index + 1, log.durable_index + 1)
            entries[group.group] = {index: term for _, index, term in held}
        states = None
        if wal.durable == wal.appended:
            states = {one.group: (one.log._term, one.log._vote or 0) for one in node.node._replicas.all()}
        self._promised[node.id] = _Promised(node.node._folder.incarnation, entries, states)

    def after_crash(self, node: SimNode) -> None:
        """Read a copy of the disk as the next start would."""
        promised = self._promised.pop(node.id, None)
        if promised is None or node.id in self._lost:
            return
        self.crashes += 1
        try:
            wal = Wal.open(
                node.disk.copy().mount(),
                SimWorker(),
                WAL_FOLDER,
                lambda problem: self.report("wal", f"the log of {node.name} died at once: {problem!r}"),
                identity=promised.incarnation.encode(),
                segment_bytes=self._cluster.settings.segment_bytes,
                must_exist=True,
            )
        except (RaftKVError, OSError) as problem:
            self.report("wal", f"{node.name} cannot read its log after a crash: {problem}")
            return
        for group, entries in promised.entries.items():
            state = wal.recovered.get(group)
            found = {} if state is None else {index: term for _, index, term in state.entries}
            base = 0 if state is None else state.snapshot_index
            gone = [index for index, term in entries.items() if index > base and found.get(index) != term]
            if gone:
                self.report("wal", f"{node.name} has lost durable entry {gone[0]} of group {group} in a crash")
        for group, hard in (promised.hard_states or {}).items():
            state = wal.recovered.get(group)
            if state is None or (state.term, state.vote) != hard:
                self.report("wal", f"{node.name} has lost the durable term and vote {hard} of group {group}")
