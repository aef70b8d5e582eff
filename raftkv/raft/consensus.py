"""One replica's part in its group's consensus: inputs go in with their time, and each step returns one value.

Inputs are messages of peers, the passing of time, proposals, reads, changes of members, and what has become of an
earlier step: what is on stable storage, what is applied, which snapshots there are. Each only changes memory.
:meth:`Consensus.step` then says what they lead to, a :class:`Ready`. Nothing here waits, logs, reads a clock, or
touches a disk or a network: the same inputs always lead to the same values.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from raftkv import limits
from raftkv.commands.results import MALFORMED, Result
from raftkv.errors import Code
from raftkv.raft import guard
from raftkv.raft.config import RaftConfig
from raftkv.raft.configurations import CONFIG
from raftkv.raft.core import LEADER, Core
from raftkv.raft.elections import Elections
from raftkv.raft.leadership import Leadership
from raftkv.raft.log import GroupLog
from raftkv.raft.lost import LostEntries
from raftkv.raft.membership import ChangeDone, Membership
from raftkv.raft.messages import ACK, ANSWERS, APPEND, OF_ELECTIONS, Type
from raftkv.raft.proposals import OpenEntry, Proposal, Proposals
from raftkv.raft.reads import ReadDone
from raftkv.raft.ready import Committed, Entry, Offer, Outputs, Ready

_APPLY_BYTES: Final = 1024 * 1024
"""Bytes of entries that one step hands out to be applied. The rest waits for the next step, so that a node that catches
up still sends heartbeats."""


class Consensus:
    """One replica of one group.

    ``base``, ``base_voters``, ``entries``, ``hard_state`` (term, vote), ``floor``, ``lost``: what it starts with, see
    :class:`GroupLog`, :class:`Elections` and :class:`LostEntries`. ``link_number``: see :class:`Leadership`. Times
    are in seconds of one clock that never goes back.
    """

    def __init__(
        self,
        group: int,
        node: int,
        now: float,
        *,
        hard_state: tuple[int, int],
        base: tuple[int, int],
        base_voters: Sequence[int],
        entries: Sequence[Entry],
        floor: tuple[int, int] = (0, 0),
        lost: bool = False,
        rng: random.Random,
        config: RaftConfig,
        link_number: Callable[[int], int],
        time: int = 0,
    ) -> None:
        self.group = group
        self.node = node
        self.outputs = outputs = Outputs()
        self.log = log = GroupLog(group, outputs, base, base_voters, entries, *hard_state)
        self.core = core = Core(node, log, now, rng, config)
        self.lost = LostEntries(group, core, log, outputs, config.heartbeat, floor, lost)
        self.elections = Elections(group, node, core, log, self.lost, outputs, config, floor)
        self.membership = Membership(group, node, core, log, outputs)
        self.proposals = Proposals()
        self.lead: Leadership | None = None
        self.caught_up = False
        self.lease_doubted = False
        """Set from outside: a voter's clock runs too fast for leases."""
        self.time = time
        """Group time of the last entry that was applied, in ms."""
        self._config = config
        self._link_number = link_number
        self._start = rng.getrandbits(32)
        self._seq = 0
        self._replies = 0
        self._said_due = float("-inf")
        self._handed = core.applied_index()
        self._target_commit: int | None = None

    # -- views

    def ready(self) -> bool:
        """Whether this replica leads and has applied the entry that opened its term."""
        return self.lead is not None and self.lead.open

    def not_leader(self) -> Result:
        """The answer of a replica that does not lead."""
        leader = self.core.leader()
        if leader and leader != self.node:
            return Result(Code.NOT_LEADER, hint=leader)
        return Result(Code.UNAVAILABLE, detail=f"group {self.group} has no leader")

    def lease_holds(self, now: float) -> bool:
        """Whether the state machine may be read at once."""
        return self._lease(now, self.core.applied_index())

    def _lease(self, now: float, applied: int) -> bool:
        """Whether the lease allows local reads once entry ``applied`` is applied."""
        lead = self.lead
        if lead is None or self.lease_doubted or applied != self.core.commit_index():
            return False
        return lead.lease_holds(now)

    def contact(self, now: float) -> float:
        """On a leader: latest moment after which a majority has heard it."""
        return float("-inf") if self.lead is None else self.lead.contact(now)

    def hears_leader(self, now: float) -> bool:
        """Whether this replica leads, or has heard its leader within an election time-out."""
        return self.lead is not None or now < self.elections.heard + self._config.election_max

    def group_time(self, now: float) -> int:
        """Group time in milliseconds: that of the last entry plus what has passed on this leader's own clock.

        Wall clocks play no part, so a record never expires early; while a group has no leader, its time stands still.
        """
        return self.time if self.lead is None or not self.lead.open else max(self.time, self.lead.time(now))

    def holds(self, index: int, term: int) -> bool:
        """Whether a snapshot of (``index``, ``term``) would give this replica nothing."""
        return guard.superfluous(self.log, self.core.commit_index(), index, term)

    # -- inputs: clients and operators

    def propose(self, proposal: Proposal) -> Result | None:
        """Replicate ``proposal`` in one entry. Returns why not if it is refused; then it never reaches the log."""
        return self.not_leader() if self.lead is None else self.proposals.add(proposal)

    def hold_bulk(self, held: bool) -> bool:
        """Clients' large writes wait, or go on. Returns whether that changes anything."""
        before, self.proposals.bulk_held = self.proposals.bulk_held, held
        return held != before

    def read(self, quorum: bool, done: ReadDone) -> Result | None:
        """Call ``done`` once a linearizable read may be served. Returns why not if it is refused."""
        if self.lead is None:
            return self.not_leader()
        # Before the entry that opens the term is committed, this leader does not know which entries are.
        index = max(self.core.commit_index(), self.core.no_op_index())
        self.lead.reads.add(self.lead.seq, index, quorum, done)
        return None

    def change_members(self, voters: Sequence[int], done: ChangeDone, now: float) -> None:
        """Make ``voters`` the voters of the group."""
        self.core.now = now
        if self.lead is None:
            self.outputs.answer(done, self.not_leader())
        elif self.membership.change(self.lead, voters, done, now + self._config.election_max):
            self._follow_members()

    def set_learners(self, nodes: Sequence[int], now: float) -> bool:
        """Set all learners: nodes that hold the log without a vote. Voters among ``nodes`` are ignored. Returns whether
        anything has changed."""
        self.core.now = now
        changed = self.membership.set_learners(nodes)
        if changed:
            self._follow_members()
        return changed

    def transfer(self, target: int, now: float) -> bool:
        """Hand the leadership to ``target``, as soon as it holds the whole log. Returns whether it was started."""
        self.core.now = now
        return self.lead is not None and self.lead.start_transfer(target)

    def close(self) -> None:
        """This replica ends: nothing that waits for it will be done."""
        self.core.step_down()
        self._observe()

    # -- inputs: time and the executor

    def tick(self, now: float) -> bool:
        """Called every few milliseconds: time-outs and heartbeats. Returns whether there is something to do."""
        core, lead = self.core, self.lead
        core.now = now
        if lead is None:
            if now < core.election_deadline():
                return False
            self.elections.stand()
            self._observe()
            return True
        if lead.lonely():
            self.outputs.note(logging.WARNING, f"no contact with a majority, stepping down in term {lead.term}")
            core.step_down()
            self._observe()
            return True
        return lead.transfer_overdue() or len(lead.reads) > 0 or lead.heartbeat_due()

    def synced(self, count: int) -> bool:
        """The first ``count`` records are on stable storage. Returns whether there is something to do."""
        self.outputs.synced = count
        before = self.log.durable_index
        self.log.on_synced(count)
        return self.lead is not None and self.log.durable_index != before and self._has_work(self.lead)

    def applied(self, index: int, time: int, now: float) -> bool:
        """Everything up to entry ``index`` is applied. ``time``: the state machine's. Returns as :meth:`tick`."""
        core, lead = self.core, self.lead
        core.set_applied_index(index)
        self.time = time
        opens = lead is not None and not lead.open and index >= core.no_op_index()
        if opens and lead is not None:
            core.now = now
            self._target_commit = core.no_op_index()
            lead.opened(time)
        if not self.caught_up and self._target_commit is not None:
            self.caught_up = index >= self._target_commit
        return opens

    def snapshot_written(self, index: int, term: int, size: int) -> None:
        """There is a durable snapshot of an entry that was applied."""
        self.log.cover(index, term, size)

    def snapshot_kept(self, peer: int, index: int) -> None:
        """The snapshot that ``peer`` offered is not needed: this log and state hold everything up to ``index``."""
        self._acknowledge(peer, 0, 0, matches=True, index=index + 1)  # seq 0 answers no append

    def snapshot_installed(self, offer: Offer, time: int, voters: Sequence[int]) -> None:
        """The state machine has just taken over a snapshot that this log does not hold. ``time``: the machine's."""
        self.core.install_snapshot(offer.index, offer.term, voters)
        self.log.cover(offer.index, offer.term, offer.size)
        self._handed = offer.index
        self.time = time
        self.snapshot_kept(offer.peer, offer.index)

    # -- the step

    def step(self, now: float) -> Ready:
        """What the inputs since the last step lead to."""
        self.core.now = now
        lead = self.lead
        reads: list[ReadDone] = []
        if lead is None:
            committed = self._hand_out()
        else:
            if self.membership.look(lead):
                self._follow_members()
            lead.advance_commit()
            committed = self._hand_out()
            self._propose(lead, now)
            lead.continue_transfer()
            # Before anything is sent: a read that the lease allows asks for no round.
            if len(lead.reads):
                reads = lead.take_reads(self._handed, self._lease(now, self._handed))
            lead.replicate()
        return self.outputs.take(committed, reads, self._handed < self.core.commit_index())

    def _hand_out(self) -> list[Committed]:
        """The next entries to apply, once all earlier ones are applied; at most about 1 MiB of them."""
        core, first = self.core, self._handed + 1
        commit = core.commit_index()
        if first > commit or core.applied_index() != self._handed:
            return []
        committed = []
        for command, index, _ in self.log.between(first, commit + 1, _APPLY_BYTES):
            if command.startswith(CONFIG):
                self.membership.committed(index)
            committed.append(Committed(index, command, self.proposals.close(index)))
        self._handed += len(committed)
        return committed

    def _has_work(self, lead: Leadership) -> bool:
        """Whether a step of this leader leads to anything, after an answer or a sync: most of them change nothing."""
        return (
            lead.has_work()
            or not self.outputs.empty
            or self._handed < self.core.commit_index()
            or self.membership.asks
            or self._may_propose(lead)
        )

    def _may_propose(self, lead: Leadership) -> bool:
        ready = lead.open and lead.transfer is None and self.log.syncing_bytes < limits.MAX_UNSYNCED_BYTES
        return ready and self.proposals.due and self._may_open(lead)

    def _propose(self, lead: Leadership, now: float) -> None:
        proposals = self.proposals
        while self._may_propose(lead):
            time = self.group_time(now)
            entry, ops, taken, malformed = proposals.next_entry(time)
            if malformed:
                for proposal in malformed:
                    text = f"malformed operations are not proposed: {proposal.ops!r:.200}"
                    self.outputs.note(logging.ERROR, text)
                self.outputs.refuse(malformed, MALFORMED)
            proposals.opened(OpenEntry(self.core.append(entry), time, len(entry), ops, taken))

    def _may_open(self, lead: Leadership) -> bool:
        """Whether the next entry may be proposed now, or what waits is to gather until an open one is applied."""
        count = self.proposals.open_entries
        if not count:
            return True
        most = self._config.open_entries or lead.worthwhile_entries()
        return count < most and self.proposals.open_bytes < limits.MAX_OPEN_BYTES

    # -- messages

    def receive(self, peer: int, message: list[Any], now: float) -> bool:
        """A message of ``peer`` that has the shape of its type. Returns whether there is something to do."""
        core = self.core
        core.now = now
        kind, fields = message[1], message[2:]
        if kind in ANSWERS and not self.membership.knows(peer):
            return False
        if kind == APPEND:
            self._on_append(peer, *fields)
        elif kind == ACK:
            if fields[0] > core.term():
                core.adopt_term(fields[0])
            elif self.lead is not None:
                self.lead.on_ack(peer, *fields)
        elif kind == Type.HEARD:
            if self.lead is not None:
                self.lead.on_heard(peer, *fields)
        elif kind == Type.STALE:
            core.adopt_term(fields[0])
        elif kind == Type.LOST:
            if self._follow(peer, fields[0]):
                self.lost.on_lost(peer, *fields)
        elif kind == Type.BARRED:
            if self.lead is not None:
                self.lost.on_barred(peer, fields[0], self.lead.followers[peer])
        elif kind in OF_ELECTIONS:
            contact = None if self.lead is None else self.lead.contact(now)
            self.elections.receive(peer, kind, fields, contact)
        elif kind == Type.SNAPSHOT_OFFER:
            self._on_offer(peer, *fields)
        self._observe()
        return kind not in (ACK, Type.HEARD) or self.lead is None or self._has_work(self.lead)

    def _on_append(
        self,
        peer: int,
        term: int,
        seq: int,
        link_number: int,
        previous: int,
        previous_term: int,
        commit: int,
        raw: Sequence[tuple[int, bytes]],
    ) -> None:
        if not self._hear(peer, term):
            return
        core, log = self.core, self.log
        found = guard.judge(log, core.commit_index(), previous, previous_term, raw)
        verified = min(commit, found.next_index - 1) if found.matches else 0
        core.receive_append(peer, term, found.previous, found.previous_term, found.entries, verified)
        if self._target_commit is None and commit == verified and log.term_at(commit) == term:
            # Only a leader that has committed an entry of its term knows what is committed.
            self._target_commit = commit
        self._acknowledge(peer, seq, link_number, matches=found.matches, index=found.next_index)

    def _acknowledge(self, peer: int, seq: int, link_number: int, *, matches: bool, index: int) -> None:
        outputs, term = self.outputs, self.core.term()
        if outputs.synced < outputs.recorded and self.elections.heard >= self._said_due:
            # The acknowledgement may have to wait behind megabytes. A lease, a quorum read and the leader's calm need a
            # follower that listens, not one with a fast disk.
            self._said_due = self.elections.heard + self._config.heartbeat
            outputs.send(peer, [self.group, Type.HEARD, term, seq])
        self._replies += 1
        stored = (self._start, self._replies)
        outputs.send(peer, [self.group, ACK, term, seq, link_number, matches, index, self.log.last_index, stored])

    def _on_offer(self, peer: int, term: int, index: int, snapshot_term: int, size: int) -> None:
        if not self._follow(peer, term):
            return
        if self.holds(index, snapshot_term):
            self.snapshot_kept(peer, max(self.core.commit_index(), index))
        else:
            self.outputs.fetch = Offer(peer, index, snapshot_term, size)

    def _follow(self, peer: int, term: int) -> bool:
        """A leader has sent something other than an append. Returns whether this replica follows it."""
        if not self._hear(peer, term):
            return False
        self.core.follow(peer, term)
        return True

    def _hear(self, peer: int, term: int) -> bool:
        if term < self.core.term():
            self.outputs.send(peer, [self.group, Type.STALE, self.core.term()])
            return False
        self.elections.hear_leader()
        if self.lost.here:
            self.core.follow(peer, term)
            self.lost.answer(peer, term)
            return False
        return True

    # -- leading

    def _observe(self) -> None:
        """Notice that this replica has become or stopped being the leader."""
        core, lead = self.core, self.lead
        leads = core.role() == LEADER
        if lead is not None and not (leads and core.term() == lead.term):
            self._stop_leading(lead)
        if leads and self.lead is None:
            self._start_leading()

    def _start_leading(self) -> None:
        self.lead = Leadership(
            self.group, self.core, self.log, self.lost, self.outputs, self._config, self._link_number, self._seq
        )
        self.elections.won += 1
        self._follow_members()
        self.outputs.note(logging.INFO, f"leading in term {self.lead.term}")

    def _follow_members(self) -> None:
        if self.lead is not None:
            self.lead.follow(self.membership.replicas(), self.core.voters())

    def _stop_leading(self, lead: Leadership) -> None:
        outputs = self.outputs
        outputs.note(logging.INFO, f"no longer leading in term {lead.term}")
        self.lead = None
        self._seq = lead.seq
        self.core.postpone_election()
        unknown = Result(Code.UNKNOWN, detail="the leader lost its term before it saw the outcome")
        outputs.refuse(self.proposals.drop_open(), unknown)
        self.membership.fail(unknown)
        for done in lead.reads.drop():
            outputs.answer(done, Code.NOT_LEADER)
        outputs.refuse(self.proposals.drop_waiting(), self.not_leader())
