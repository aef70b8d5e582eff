"""What must hold at every moment inside the nodes, whatever clients see of it.

- A term of a group has one leader. A majority voted for it, and it holds all that was committed in earlier terms.
- No leader is elected while an older one still holds its lease.
- A leader that a majority has not answered for an election time-out steps down.
- A leader counts on a follower only for what that follower's disk holds, and commits only what a majority's disks hold
  and what is of its own term.
- An entry that one replica has committed is the same on every replica, for ever. A disk that held it goes on holding
  it, or a snapshot that covers it.
- State machines that have applied the same entries are equal, and so are the voters as of the same entry. One entry
  brings in or takes out one voter, so that majorities before and after it meet.
- What was durable, or was told to others, survives every crash (:mod:`faults.sim.promises`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

from faults.sim.cluster import SimCluster, SimNode
from faults.sim.promises import Promises
from raftkv.raft import RaftGroup
from raftkv.raft.leadership import Leadership
from raftkv.store.meta import MetaStore
from raftkv.store.records import Store

_DIGEST_EVERY: Final = 16
"""Entries between comparisons of whole states: a digest reads all of a state."""

_STEPS_DOWN: Final = 0.1
"""Seconds that a leader without contact may take to notice."""

_LOOKS: Final = 10


class _Committed(NamedTuple):
    """An entry, and the lowest term in which some replica was first seen to have it committed."""

    term: int
    checksum: int
    seen_in: int


@dataclass(slots=True)
class _Seen:
    """Up to where one replica has been looked at. ``lonely``: moments in a row at which a leader should have gone."""

    commit: int = 0
    lead_term: int = 0
    lead_since: float = 0.0
    lonely: int = 0
    looked: float = 0.0


class Invariants:
    """Looks at all replicas after each turn and each applied entry. ``problems`` has what it found.

    ``leases``: whether clocks keep to the allowance on which leases rest.
    """

    def __init__(self, cluster: SimCluster, *, leases: bool = True) -> None:
        self.problems: list[str] = []
        self.on_problem: Callable[[], object] = lambda: None
        """Called at each new problem."""
        self.leaderships = 0
        """Terms that had a leader, all groups together."""
        self.digests = 0
        """Comparisons of whole states."""
        self.promises = Promises(cluster, self.report)
        self._leases = leases
        self._cluster = cluster
        self._leaders: dict[tuple[int, int], tuple[int, int]] = {}
        self._log: dict[int, dict[int, _Committed]] = {}
        self._last: dict[int, int] = {}
        self._states: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._voters: dict[tuple[int, int], tuple[tuple[int, ...], int]] = {}
        self._seen: dict[tuple[int, int, int], _Seen] = {}
        self._held: dict[tuple[int, int], int] = {}
        self._present: dict[tuple[int, int], tuple[RaftGroup, ...]] = {}
        cluster.on_turn.append(self._look)
        cluster.on_applied.append(self._applied)

    def report(self, kind: str, what: str) -> None:
        """Something is wrong."""
        line = f"{kind}: {what}"
        if line not in self.problems:
            self.problems.append(line)
            self._cluster.trace.note(f"PROBLEM {line}")
            self.on_problem()

    # -- replicas

    def _look(self, node: SimNode) -> None:
        replicas, life = node.replicas(), (node.id, node.starts)
        if replicas is not self._present.get(life):
            self._note_present(node, replicas)
        for group in replicas:
            key = (*life, group.group)
            seen = self._seen.get(key)
            if seen is None:
                seen = self._seen[key] = _Seen()
                self.promises.after_start(node, group)
            lead = group.consensus.lead
            if lead is not None:
                if lead.term != seen.lead_term:
                    seen.lead_term, seen.lead_since = lead.term, node.clock.now()
                    self._look_at_leader(node, group, lead.term)
                self._look_at_contact(node, group, lead, seen)
                self._look_at_matches(node, group, lead)
            commit = group.core.commit_index()
            if commit != seen.commit:
                self._look_at_commits(node, group, seen.commit, commit)
                self._look_at_voters(node, group, seen.commit, commit)
                seen.commit = commit
            self._look_at_held(node, group)

    def _note_present(self, node: SimNode, replicas: tuple[RaftGroup, ...]) -> None:
        """One that was dropped owes nothing any more, but for its votes."""
        life = (node.id, node.starts)
        now = {group.group for group in replicas}
        for group in self._present.get(life, ()):
            if group.group not in now:
                self._held.pop((node.id, group.group), None)
                self._seen.pop((*life, group.group), None)
        self._present[life] = replicas

    def _others(self, node: SimNode, number: int) -> list[tuple[SimNode, RaftGroup]]:
        """The running replicas of a group on other nodes."""
        found = []
        for other in self._cluster.nodes.values():
            replica = None if other is node else other.replica(number)
            if replica is not None:
                found.append((other, replica))
        return found

    def _look_at_leader(self, node: SimNode, group: RaftGroup, term: int) -> None:
        number = group.group
        self.leaderships += 1
        me = (node.id, node.starts)
        if self._leaders.setdefault((number, term), me) != me:
            other = self._leaders[number, term][0]
            self.report("two leaders", f"{node.name} and n{other} both lead group {number} in term {term}")
        voters = self.promises.votes.get((number, term, node.id), {node.id}).intersection(group.voters)
        if 2 * len(voters) <= len(group.voters):
            self.report("votes", f"{node.name} leads group {number} in term {term} by the votes of {sorted(voters)}")
        # All that was committed in an earlier term; later ones do not bind a leader that slept meanwhile.
        known, index = self._log.get(number, {}), self._last.get(number, 0)
        while index in known and known[index].seen_in >= term:
            index -= 1
        entry = known.get(index)
        if entry is not None and index > group.log.base_index and group.log.term_at(index) != entry.term:
            self.report("leader", f"{node.name} leads group {number} in term {term} without committed entry {index}")
        for other_node, replica in self._others(node, number):
            old_lead = replica.consensus.lead
            if self._leases and old_lead is not None and old_lead.term < term and replica.lease_holds():
                old = f"{other_node.name} in term {old_lead.term}"
                self.report("lease", f"{node.name} leads group {number} in term {term} within the lease of {old}")

    def _look_at_contact(self, node: SimNode, group: RaftGroup, lead: Leadership, seen: _Seen) -> None:
        """A leader that no majority answers steps down; what came due during a pause gets its turn first."""
        now = node.clock.now()
        contact = max(lead.contact(now), seen.lead_since)
        if now - contact <= self._cluster.settings.election_max + _STEPS_DOWN:
            seen.lonely = 0
        elif now > seen.looked:
            seen.lonely += 1
        seen.looked = now
        if seen.lonely == _LOOKS:
            self.report("contact", f"{node.name} goes on leading group {group.group} without a majority")

    def _look_at_matches(self, node: SimNode, group: RaftGroup, lead: Leadership) -> None:
        """A follower in the leader's own term holds what the leader counts on."""
        own, core, term, voters, nodes = group.log, group.core, lead.term, group.voters, self._cluster.nodes
        for peer, progress in lead.followers.items():
            if peer not in voters:
                continue  # nothing is built on it
            if progress.data_loss or peer in self.promises.lost_disks:
                continue  # nobody can know yet
            other = nodes[peer]
            replica = other.replica(group.group)
            if replica is None or replica.core.term() != term:
                continue
            match, log = core.match_index(peer), replica.log
            if match <= log.base_index:
                continue
            if match > log.durable_index or (match >= own.base_index and log.term_at(match) != own.term_at(match)):
                self.report(
                    "match",
                    f"{node.name} counts on {other.name} for entry {match} of group {group.group} in term "
                    f"{term}, which ends at {log.last_index}, durable to {log.durable_index}",
                )

    def _look_at_commits(self, node: SimNode, group: RaftGroup, before: int, commit: int) -> None:
        known = self._log.setdefault(group.group, {})
        term_now = group.core.term()
        if group.leads() and commit > self._last.get(group.group, 0):
            self._look_at_majority(node, group, commit)
        for command, index, term in group.log.between(max(before, group.log.base_index) + 1, commit + 1):
            checksum = zlib.crc32(command)
            old = known.get(index)
            if old is None:
                known[index] = _Committed(term, checksum, term_now)
                self._last[group.group] = max(index, self._last.get(group.group, 0))
            elif (old.term, old.checksum) != (term, checksum):
                was, found = f"{old.checksum:08x} of term {old.term}", f"{checksum:08x} of term {term}"
                self.report(
                    "committed", f"entry {index} of group {group.group} was {was}, on {node.name} it is {found}"
                )
            elif old.seen_in > term_now:
                known[index] = old._replace(seen_in=term_now)

    def _look_at_voters(self, node: SimNode, group: RaftGroup, before: int, commit: int) -> None:
        known_as = group.log.configurations.at
        voters = known_as(commit)
        old = known_as(max(before, group.log.base_index))
        for index in range(max(before, group.log.base_index) + 1, commit + 1 if old != voters else 0):
            new = known_as(index)
            if len(set(old) ^ set(new)) > 1:
                self.report("voters", f"of group {group.group} change from {old} to {new} at once, at entry {index}")
            old = new
        known, other = self._voters.setdefault((group.group, commit), (voters, node.id))
        if known != voters:
            self.report(
                "voters", f"of group {group.group} at entry {commit}: {known} on n{other}, {voters} on {node.name}"
            )

    def _look_at_held(self, node: SimNode, group: RaftGroup) -> None:
        """What is committed and was on this node's disk is still in its log, or below its base."""
        number, log = group.group, group.log
        place, base = (node.id, number), log.base_index
        held, last = self._held.get(place, 0), self._last.get(number, 0)
        if held > base and log.term_at(held) != self._log[number][held].term:
            if node.id not in self.promises.lost_disks:
                self.report("held", f"{node.name} no longer holds committed entry {held} of group {number}")
            return
        top = min(log.durable_index, last)
        if top > held and (top <= base or log.term_at(top) == self._log[number][top].term):
            self._held[place] = top

    def _look_at_majority(self, node: SimNode, group: RaftGroup, commit: int) -> None:
        """A leader has just committed ``commit``: a majority's disks hold it, also those of nodes that do not run."""
        term = group.log.term_at(commit)
        if term != group.core.term():
            self.report("commit", f"{node.name} commits entry {commit} of term {term} in term {group.core.term()}")
        running = self._others(node, group.group)
        missing = [
            other.name
            for other, replica in [(node, group), *running]
            if other.id in group.voters
            and other.id not in self.promises.lost_disks
            and replica.log.base_index < commit
            and (replica.log.durable_index < commit or replica.log.term_at(commit) != term)
        ]
        up = {node.id, *(other.id for other, _ in running)}
        missing += [
            f"n{voter}"
            for voter in group.voters
            if voter not in up and not self.promises.holds(voter, group.group, commit, term or 0)
        ]
        if 2 * (len(group.voters) - len(missing)) <= len(group.voters):
            self.report("commit", f"{node.name} commits entry {commit} of group {group.group} without {missing}")

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
