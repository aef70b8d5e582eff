"""A Raft group's replica on this node: proposals, reads, elections, replication.

Events come in by ``receive``, ``propose``, ``read``, ``tick`` and ``on_durable``; each only changes memory and asks for
a ``step``. The node calls ``step`` once at the end of the loop's turn for every group that asked, so that everything
that arrived in a turn shares one log entry, one message to each follower and one sync of the WAL.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raftkv import limits
from raftkv.clock import Clock
from raftkv.commands.base import Command
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.raft import guard, replication
from raftkv.raft.config import RaftConfig
from raftkv.raft.configurations import CONFIG, Voters
from raftkv.raft.core import LEADER, Core
from raftkv.raft.elections import Elections
from raftkv.raft.entries import is_batch, prepared, unpack_batch
from raftkv.raft.log import BrokenInvariant, Entry, GroupLog
from raftkv.raft.lost import LostEntries
from raftkv.raft.membership import ChangeDone, Members, Membership
from raftkv.raft.messages import ANSWERS, OF_ELECTIONS, OF_LOSSES, Type, check
from raftkv.raft.ports import LogWriter, Outbox, StateMachine
from raftkv.raft.proposals import Done, OpenEntry, Proposal, Proposals
from raftkv.raft.reads import ReadDone, ReadQueue
from raftkv.raft.replication import Progress, majority_value
from raftkv.raft.snapshots import GroupSnapshots, SnapshotFiles, align
from raftkv.raft.status import GroupStatus, status_of

log = logging.getLogger(__name__)

_APPLY_BYTES: Final = 1024 * 1024
"""Applied in one turn; the rest waits for the next, so that heartbeats go on while a node catches up."""


@dataclass(slots=True)
class _Transfer:
    target: int
    deadline: float
    sent: bool = False


class RaftGroup:
    """One replica of one group.

    ``founders``: the voters with which the group's log began; all later ones are in the log or come with a snapshot.
    ``floor``: term and index of the end of a log that this node once held and dropped, see :class:`Elections`.
    ``lost``: whether this replica has lost entries that it had acknowledged.
    ``wake`` asks for a ``step`` at the end of this turn. ``fatal`` stops the node: called when going on could break a
    promise. ``lease_doubted``, set from outside: a voter's clock runs too fast for leases.
    """

    def __init__(
        self,
        group: int,
        node: int,
        founders: Sequence[int],
        *,
        hard_state: tuple[int, int],
        floor: tuple[int, int] = (0, 0),
        lost: bool = False,
        compacted: int,
        entries: Sequence[Entry],
        machine: StateMachine,
        wal: LogWriter,
        files: SnapshotFiles,
        outbox: Outbox,
        clock: Clock,
        rng: random.Random,
        config: RaftConfig,
        wake: Callable[[], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self.group = group
        self.node = node
        self.machine = machine
        self._wal = wal
        self._outbox = outbox
        self._clock = clock
        self._config = config
        self._wake = wake
        self._fatal = fatal
        info = files.latest(group)
        base, kept = align(group, info, compacted, entries, wal, machine, files)
        base_voters = founders if info is None else info.voters
        self.log = GroupLog(group, wal, base, base_voters, kept, hard_state[0], hard_state[1] or None)
        self.core = Core(node, self.log, clock, rng, config)
        self.elections = Elections(self, outbox, clock, config, floor)
        self.lost = LostEntries(self, wal, outbox, config.heartbeat, floor, lost)
        self.membership = Membership(self)
        self.snapshots = GroupSnapshots(self, wal, files, outbox, clock, config)
        self._start = rng.getrandbits(32)
        self._replies = 0
        self._said_due = float("-inf")
        self._proposals = Proposals()
        self._leading = False
        self._target_commit: int | None = None
        self.caught_up = False
        self.lease_doubted = False
        self._reset_leadership()

    def _reset_leadership(self) -> None:
        self._lead_term = 0
        self._lead_since = 0.0
        self._ready = False
        self._progress: dict[int, Progress] = {}
        self.counted: dict[int, Progress] = {}
        """Leader: the followers whose answers count."""
        self._seq = getattr(self, "_seq", 0)
        self._round_seq = 0
        self._reads = ReadQueue()
        self._lease_off = False
        self._transfer: _Transfer | None = None
        self._time_base = (0, 0.0)

    # -- views

    @property
    def voters(self) -> Voters:
        """Those in effect, committed or not."""
        return self.core.voters()

    def leads(self) -> bool:
        return self._leading

    def ready(self) -> bool:
        """Whether this replica leads and has applied the entry that opened its term."""
        return self._ready

    def transfers(self) -> bool:
        """Whether the leadership is being handed over."""
        return self._transfer is not None

    def answers(self, peer: int) -> bool:
        """Whether ``peer`` is a follower in contact with this leader."""
        progress, now = self._progress.get(peer), self._clock.now()
        return progress is not None and not progress.amnesia and now < progress.contact + self._config.election_max

    def leader(self) -> int:
        """Node believed to lead, 0 = unknown."""
        return self.core.leader()

    def status(self) -> GroupStatus:
        return status_of(self, self._progress)

    # -- proposals

    def propose(self, ops: Sequence[Command], size: int, done: Done, source: int = 0) -> Proposal:
        """Replicate ``ops``, of ``size`` bytes of payload, in one entry; ``done(results)`` is called once.

        TOO_LARGE, NOT_LEADER and UNAVAILABLE are answered only to operations that never reached the log; UNKNOWN if
        this node lost the leadership before it saw the outcome. ``source``: on whose behalf, 0 = the node's own.
        What is returned can be withdrawn.
        """
        proposal = Proposal(ops, size, done, source)
        if self._leading:
            self._proposals.add(proposal)
            self._wake()
        else:
            proposal.refuse(self._not_leader())
        return proposal

    def _not_leader(self) -> Result:
        leader = self.core.leader()
        if leader and leader != self.node:
            return Result(Code.NOT_LEADER, hint=leader)
        return Result(Code.UNAVAILABLE, detail=f"group {self.group} has no leader")

    def hold_bulk(self, held: bool) -> None:
        """Clients' large writes wait, or go on. What else is proposed goes on in either case."""
        if held != self._proposals.bulk_held:
            self._proposals.bulk_held = held
            self._wake()

    def _flush_proposals(self) -> None:
        if not self._ready or self._transfer is not None or self.log.syncing_bytes >= limits.MAX_UNSYNCED_BYTES:
            return
        while self._proposals.due and self._proposals.open_entries < self._config.max_open_entries:
            now = self.time()
            entry, ops, proposals = self._proposals.next_entry(now)
            self._proposals.opened(OpenEntry(self.core.append(entry), now, ops, proposals))

    def time(self) -> int:
        """Group time in milliseconds: that of the last entry plus what has passed on this leader's own clock.

        Wall clocks play no part, so a record never expires early; while a group has no leader, its time stands still.
        """
        base, since = self._time_base
        return max(self.machine.time, base + int((self._clock.now() - since) * 1000))

    # -- reads

    def lease_holds(self) -> bool:
        """Whether the state machine may be read at once."""
        return (
            self._ready
            and not self._lease_off
            and not self.lease_doubted
            and self.core.applied_index() == self.core.commit_index()
            and self._clock.now() < self.contact() + self._config.lease
        )

    def read(self, quorum: bool, done: ReadDone) -> None:
        """Call ``done(OK)`` once a linearizable read may be served, or ``done(why not)``."""
        if not self._leading:
            done(Code(self._not_leader().code))
            return
        # Before the entry that opens the term is committed, this leader does not know which entries are.
        index = max(self.core.commit_index(), self.core.no_op_index())
        self._reads.add(self._seq, index, quorum, done)
        self._wake()

    def contact(self) -> float:
        """Latest moment after which a majority has heard this leader (send time of an acknowledged append)."""
        return majority_value([self._clock.now(), *(p.contact for p in self.counted.values())])

    def _confirmed(self) -> int:
        """Latest append that a majority has acknowledged, itself included."""
        return int(majority_value([self._seq + 1, *(p.acked for p in self.counted.values())]))

    # -- the turn's end

    def step(self) -> None:
        """Do what the events of this turn have made possible."""
        if self._leading:
            if self.membership.look(self._progress, self._clock.now()):
                self._follow_members()
            self._advance_commit()
        self._apply()
        if self._leading:
            self._flush_proposals()
            self._continue_transfer()
            if len(self._reads):
                # Before anything is sent: a read that the lease allows asks for no round.
                self._reads.serve(self.core.applied_index(), self._confirmed(), self.lease_holds())
            self._replicate()
        elif self._proposals.waiting:
            self._proposals.refuse_waiting(self._not_leader())
        self.snapshots.maybe_take()

    def tick(self) -> None:
        """Called every few milliseconds: time-outs and heartbeats."""
        now = self._clock.now()
        if not self._leading:
            if now >= self.core.election_deadline():
                self.elections.stand()
            return
        if now - max(self.contact(), self._lead_since) > self._config.contact_timeout:
            log.warning("group %d: no contact with a majority, stepping down in term %d", self.group, self._lead_term)
            self.core.step_down()
            self.observe()
            return
        if self._transfer is not None and now > self._transfer.deadline:
            self._transfer = None
            self._wake()
        if len(self._reads) or any(now >= progress.heartbeat_due for progress in self._progress.values()):
            self._wake()

    def on_durable(self, lsn: int) -> None:
        """The node's WAL is on stable storage up to record ``lsn``."""
        before = self.log.durable_index
        self.log.on_durable(lsn)
        if self._leading and self.log.durable_index != before:
            self._wake()

    def _advance_commit(self) -> None:
        core = self.core
        held = [0 if progress.amnesia else core.match_index(peer) for peer, progress in self.counted.items()]
        index = replication.committable(self.log, held, self._lead_term)
        if index > core.commit_index():
            core.set_commit_index(index)

    def _apply(self) -> None:
        core = self.core
        applied, commit = core.applied_index(), core.commit_index()
        if applied < commit:
            for command, index, term in self.log.between(applied + 1, commit + 1, _APPLY_BYTES):
                if self.machine.prepares and not prepared(self.machine, command, self._proposals.ops_of(index)):
                    break
                core.set_applied_index(index)
                self._apply_entry(command, index, term)
            if core.applied_index() < core.commit_index():
                self._wake()
        if not self.caught_up and self._target_commit is not None:
            self.caught_up = core.applied_index() >= self._target_commit

    def _apply_entry(self, command: bytes, index: int, term: int) -> None:
        self.snapshots.bytes_since += len(command)
        kind = command[:1]
        if not is_batch(command):
            if kind == CONFIG:
                self.membership.applied(index)
            elif self._leading and index == self.core.no_op_index() and term == self._lead_term:
                self._ready = True
                self._target_commit = index
                self._time_base = (self.machine.time, self._clock.now())
            return
        opened = self._proposals.close(index)
        try:
            if opened is None:
                time, ops = unpack_batch(command)
                self.machine.apply(time, ops)
                return
            results = self.machine.apply(opened.time, opened.ops)
        except Exception as error:
            self._fatal(error)
            raise BrokenInvariant(f"group {self.group}: entry {index} cannot be applied: {error!r}") from error
        opened.answer(results)

    # -- replication, as leader

    def _replicate(self) -> None:
        core, now = self.core, self._clock.now()
        force = self._reads.wants_round(self._round_seq, self._confirmed())
        last = self.log.last_index
        if force:
            self._round_seq = self._seq + 1
        for peer, progress in self._progress.items():
            epoch = self._outbox.epoch(peer)
            if epoch == 0:
                continue
            if progress.amnesia:
                self.lost.tell(peer, progress, now)
                continue
            if epoch != progress.epoch:
                progress.forget_sent(epoch, self._seq + 1)
                if core.match_index(peer):
                    core.set_next_index(peer, core.match_index(peer) + 1)
            first = core.next_index(peer)
            if first <= self.log.base_index:
                self.snapshots.offer(peer, progress, self._lead_term, now)
                # Heartbeats go on: the follower will refuse them, but its answers count as contact.
                first = last + 1
            idle = True
            while first <= last and progress.window_open():
                entries = self.log.between(first, last + 1, limits.MAX_ENTRY_BYTES)
                self._send_append(peer, progress, first, entries, now)
                first += len(entries)
                core.set_next_index(peer, first)
                idle = False
            # A round for reads does not pile up before a follower that answers nothing: heartbeats suffice for it.
            if idle and (now >= progress.heartbeat_due or (force and progress.window_open())):
                self._send_append(peer, progress, first, [], now)

    def _send_append(self, peer: int, progress: Progress, first: int, entries: list[Entry], now: float) -> None:
        self._seq += 1
        progress.on_sent(self._seq, now, sum(len(entry[0]) for entry in entries))
        progress.heartbeat_due = now + self._config.heartbeat
        term, commit = self.log.term_at(first - 1), self.core.commit_index()
        fields = (self._lead_term, self._seq, progress.epoch, first - 1, term, commit)
        self._outbox.send(peer, [self.group, Type.APPEND, *fields, [(entry[2], entry[0]) for entry in entries]])

    def _on_ack(
        self, peer: int, term: int, seq: int, epoch: int, matches: bool, index: int, last: int, stored: Sequence[int]
    ) -> None:
        if term > self.core.term():
            self.adopt(term)
        if not self._leading or term != self._lead_term:
            return
        progress, core = self._progress[peer], self.core
        at = (stored[0], stored[1])
        if progress.amnesia or seq > self._seq or at[0] == progress.forgotten:
            return
        if matches:
            if index - 1 > self.log.last_index:
                raise BrokenInvariant(f"node {peer} claims entry {index - 1} of {self.log.last_index}")
            progress.on_ack(seq)
            if index - 1 > core.match_index(peer):
                core.receive_match(peer, index - 1)
            progress.on_match(seq, at)
        elif epoch == progress.epoch and seq >= progress.probe:
            lost = last < core.match_index(peer) and (at[0] != progress.stored[0] or at[1] > progress.stored[1])
            if lost and peer not in self.voters:
                # Nothing was built on what it held: its replica was dropped and came back.
                progress.forgotten = progress.stored[0]
                core.untrack(peer)
                core.track(peer)
            elif lost:
                self.lost.found(peer, progress, core.match_index(peer), last)
                return
            progress.on_ack(seq)
            progress.forget_sent(epoch, self._seq + 1)
            core.set_next_index(peer, index)
        self._wake()

    def _on_heard(self, peer: int, term: int, seq: int) -> None:
        if self._leading and term == self._lead_term and not self._progress[peer].amnesia:
            self._progress[peer].on_heard(seq)
            self._wake()

    # -- replication, as follower

    def _on_append(
        self,
        peer: int,
        term: int,
        seq: int,
        epoch: int,
        previous: int,
        previous_term: int,
        commit: int,
        raw: Sequence[tuple[int, bytes]],
    ) -> None:
        core = self.core
        if not self._hear(peer, term):
            return
        found = guard.judge(self.log, core.commit_index(), previous, previous_term, raw)
        verified = min(commit, found.next_index - 1) if found.matches else 0
        core.receive_append(peer, term, found.previous, found.previous_term, found.entries, verified)
        if self._target_commit is None and commit == verified and self.log.term_at(commit) == term:
            # Only a leader that has committed an entry of its term knows what is committed.
            self._target_commit = commit
        self._acknowledge(peer, seq, epoch, matches=found.matches, index=found.next_index)
        self._wake()

    def _acknowledge(self, peer: int, seq: int, epoch: int, *, matches: bool, index: int) -> None:
        if self._wal.durable < self._wal.appended and self.elections.heard >= self._said_due:
            # The acknowledgement may have to wait behind megabytes. A lease, a quorum read and the leader's calm need a
            # follower that listens, not one with a fast disk.
            self._said_due = self.elections.heard + self._config.heartbeat
            self._outbox.send(peer, [self.group, Type.HEARD, self.core.term(), seq])
        self._replies += 1
        stored = (self._start, self._replies)
        fields = (self.core.term(), seq, epoch, matches, index, self.log.last_index, stored)
        self._outbox.send_when_durable(peer, [self.group, Type.ACK, *fields])

    def acknowledge_snapshot(self, peer: int, index: int) -> None:
        """This log and state hold everything up to ``index``; seq 0 answers no append."""
        self._acknowledge(peer, 0, 0, matches=True, index=index + 1)

    def follow(self, peer: int, term: int) -> bool:
        """A leader says something else than an append: whether it is to be listened to."""
        if not self._hear(peer, term):
            return False
        self.core.follow(peer, term)
        return True

    def _hear(self, peer: int, term: int) -> bool:
        if term < self.core.term():
            self._outbox.send_when_durable(peer, [self.group, Type.STALE, self.core.term()])
            return False
        self.elections.hear_leader()
        if self.lost.here:
            self.core.follow(peer, term)
            self.lost.answer(peer, term)
            return False
        return True

    # -- terms

    def adopt(self, term: int) -> None:
        self.core.adopt_term(term)
        self.observe()

    def observe(self) -> None:
        """Notice that this replica has become or stopped being the leader."""
        leads = self.core.role() == LEADER
        if self._leading and not (leads and self.core.term() == self._lead_term):
            self._stop_leading()
        if leads and not self._leading:
            self._start_leading()

    def _start_leading(self) -> None:
        now = self._clock.now()
        self._leading = True
        self._lead_term = self.core.term()
        self._lead_since = now
        self.elections.won += 1
        self._seq += 1
        self._follow_members()
        log.info("group %d: leading in term %d", self.group, self._lead_term)
        self._wake()

    def _follow_members(self) -> None:
        """Leader: replicate to the voters and learners of now; those that were either go on from where they are."""
        before, now, voters = self._progress, self._clock.now(), self.voters
        self._progress = {}
        for peer in self.membership.replicas():
            progress = before.pop(peer, None)
            if progress is not None and progress.amnesia and peer not in voters:
                self.core.untrack(peer)
                progress = None
            if progress is None:
                self.core.track(peer)
                epoch = self._outbox.epoch(peer)
                progress = Progress(epoch, contact=float("-inf"), probe=self._seq, heartbeat_due=now)
            self._progress[peer] = progress
        for peer in before:
            self.core.untrack(peer)
        self.counted = replication.counted(self._progress, voters)
        self._wake()

    def _stop_leading(self) -> None:
        log.info("group %d: no longer leading in term %d", self.group, self._lead_term)
        self._leading = False
        reads = self._reads
        self._reset_leadership()
        self.core.postpone_election()
        unknown = Result(Code.UNKNOWN, detail="the leader lost its term before it saw the outcome")
        self._proposals.fail_open(unknown)
        self.membership.fail(unknown)
        reads.fail(Code.NOT_LEADER)
        self._proposals.refuse_waiting(self._not_leader())
        self._wake()

    def close(self) -> None:
        """The node hosts this replica no more: answer everything that waits. Nothing may be asked of it again."""
        self.core.step_down()
        self.observe()
        self.snapshots.close()

    # -- members

    def members(self) -> Members:
        """The voters and learners as this replica knows them."""
        return self.membership.view()

    def change_members(self, voters: Sequence[int], done: ChangeDone) -> None:
        """Make ``voters`` the voters of the group: one more or one less than now.

        ``done`` is called once: OK when the change is committed and applied here, or was so before; CONDITION_FAILED
        with the reason if it was refused; NOT_LEADER, UNAVAILABLE and UNKNOWN as with ``propose``. A newcomer must be a
        learner that has caught up.
        """
        if not self._leading:
            done(self._not_leader())
            return
        if self.membership.change(voters, done, self._seq, self._clock.now() + self._config.election_max):
            self._follow_members()

    def set_learners(self, nodes: Sequence[int]) -> None:
        """The nodes that hold the log without a vote, all of them. Voters among them are passed over."""
        if self.membership.set_learners(nodes) and self._leading:
            self._follow_members()

    # -- leadership transfer

    def transfer(self, target: int) -> bool:
        """Hand the leadership to ``target``, as soon as it holds the whole log. Returns whether it was started."""
        if not self._ready or target not in self.core.peers() or self._transfer is not None:
            return False
        self._transfer = _Transfer(target, self._clock.now() + self._config.transfer_timeout)
        self._wake()
        return True

    def approaches(self, peer: int, index: int) -> bool:
        """Whether ``peer`` is a follower in contact with this leader that has not reached ``index`` yet."""
        return self.answers(peer) and self.core.match_index(peer) < index

    def best_target(self) -> int:
        """The voter that holds most of the log among those in contact, 0 = none."""
        live = [(self.core.match_index(peer), peer) for peer in self.core.peers() if self.answers(peer)]
        return max(live)[1] if live else 0

    def _continue_transfer(self) -> None:
        transfer = self._transfer
        if transfer is None or transfer.sent or self.core.match_index(transfer.target) != self.log.last_index:
            return
        transfer.sent = True
        # The successor will be elected within the followers' calm: no local read for the rest of this term.
        self._lease_off = True
        self._outbox.send_when_durable(transfer.target, [self.group, Type.TIMEOUT_NOW, self._lead_term])

    # -- messages

    def receive(self, peer: int, message: list[Any]) -> bool:
        """Take a message of this group. Returns False if it is malformed; then nothing was changed."""
        if peer == self.node:
            return True
        if not check(message):
            return False
        kind, fields = message[1], message[2:]
        if kind in ANSWERS and not self.membership.knows(peer):
            return True
        if kind == Type.APPEND:
            self._on_append(peer, *fields)
        elif kind == Type.ACK:
            self._on_ack(peer, *fields)
        elif kind == Type.HEARD:
            self._on_heard(peer, *fields)
        elif kind == Type.STALE:
            if fields[0] > self.core.term():
                self.adopt(fields[0])
        elif kind in OF_LOSSES:
            self.lost.receive(peer, kind, fields, self._progress.get(peer))
        elif kind in OF_ELECTIONS:
            self.elections.receive(peer, kind, fields)
        else:
            self.snapshots.receive(peer, kind, fields)
        self.observe()
        return True
