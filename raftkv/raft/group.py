"""A Raft group's replica on this node: its consensus, and the only place that executes the results of its steps.

Events come in by ``receive``, ``propose``, ``read``, ``tick`` and ``on_durable``; each only changes memory and asks for
a ``step``. The node calls ``step`` once at the end of the loop's turn for every group that asked, so that everything
that arrived in a turn shares one log entry, one message to each follower and one sync of the WAL. Then it calls
``apply``: the disk and the other nodes are at work meanwhile.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from raftkv.clock import Clock
from raftkv.commands.base import Command
from raftkv.errors import Code
from raftkv.raft.config import RaftConfig
from raftkv.raft.configurations import Voters
from raftkv.raft.consensus import Consensus
from raftkv.raft.entries import encoded, is_batch, prepared, unpack_batch
from raftkv.raft.log import BrokenInvariant
from raftkv.raft.membership import ChangeDone, MembersView
from raftkv.raft.messages import ANSWERS, OF_SNAPSHOTS, check
from raftkv.raft.ports import LogWriter, Outbox, StateMachine
from raftkv.raft.proposals import Done, OpenEntry, Proposal
from raftkv.raft.reads import ReadDone
from raftkv.raft.ready import Committed, Entry, Offer
from raftkv.raft.snapshots import GroupSnapshots, SnapshotFiles, align
from raftkv.raft.status import GroupStatus, status_of

log = logging.getLogger(__name__)


class RaftGroup:
    """One replica of one group.

    ``founders``: the voters with which the group's log began; all later ones are in the log or come with a snapshot.
    ``floor``: term and index of the end of a log that this node once held and dropped, see :class:`Elections`.
    ``lost``: whether this replica has lost entries that it had acknowledged.
    ``wake`` asks for a ``step`` at the end of this turn. ``fatal`` stops the node: called when going on could break a
    promise.
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
        self._wake = wake
        self._fatal = fatal
        info = files.latest(group)
        base, kept = align(group, info, compacted, entries, wal, machine, files)
        self.consensus = Consensus(
            group,
            node,
            clock.now(),
            hard_state=hard_state,
            base=base,
            base_voters=founders if info is None else info.voters,
            entries=kept,
            floor=floor,
            lost=lost,
            rng=rng,
            config=config,
            link_number=outbox.link_number,
            time=machine.time,
        )
        self.core = self.consensus.core
        self.log = self.consensus.log
        self.elections = self.consensus.elections
        self.membership = self.consensus.membership
        self.snapshots = GroupSnapshots(self.consensus, machine, files, outbox, clock, config, wake, info)
        self._recorded = 0
        self._syncing = deque([(wal.appended, 0)])
        """Records that are not durable yet: (LSN, number of the record among this group's)."""
        # What steps have led to and :meth:`apply` is still to do.
        self._more = self._behind = False
        self._applying: deque[Committed] = deque()
        self._reading: list[ReadDone] = []
        self._answers: list[tuple[Callable[[Any], None], Any]] = []
        self._fetch: Offer | None = None

    # -- views

    @property
    def voters(self) -> Voters:
        """Those in effect, committed or not."""
        return self.core.voters()

    @property
    def caught_up(self) -> bool:
        """Whether this replica has once held all that was committed when it started."""
        return self.consensus.caught_up

    def leads(self) -> bool:
        return self.consensus.lead is not None

    def ready(self) -> bool:
        """Whether this replica leads and has applied the entry that opened its term."""
        return self.consensus.ready()

    def answers(self, peer: int) -> bool:
        """Whether ``peer`` is a follower in contact with this leader."""
        lead = self.consensus.lead
        return lead is not None and lead.answers(peer, self._clock.now())

    def leader(self) -> int:
        """Node believed to lead, 0 = unknown."""
        return self.core.leader()

    def hears_leader(self) -> bool:
        """Whether this replica leads, or has heard its leader within an election time-out."""
        return self.consensus.hears_leader(self._clock.now())

    def status(self) -> GroupStatus:
        return status_of(self.consensus, self.snapshots.index)

    def members(self) -> MembersView:
        """The voters and learners as this replica knows them."""
        return self.membership.view(self.consensus.lead, self._clock.now())

    def time(self) -> int:
        """Group time in milliseconds."""
        return self.consensus.group_time(self._clock.now())

    def lease_holds(self) -> bool:
        """Whether the state machine may be read at once."""
        return self.consensus.lease_holds(self._clock.now())

    def doubt_lease(self, doubt: bool) -> None:
        """Whether a voter's clock runs too fast for leases."""
        self.consensus.lease_doubted = doubt

    @property
    def applying(self) -> int:
        """The entry that is being applied, or was applied last."""
        return self._applying[0].index if self._applying else self.core.applied_index()

    def contact(self) -> float:
        """On a leader: latest moment after which a majority has heard it."""
        return self.consensus.contact(self._clock.now())

    def round_trip(self) -> float:
        """On a leader: seconds to as many followers as a majority needs and back, at least; 0 = unknown."""
        lead = self.consensus.lead
        return 0.0 if lead is None else lead.round_trip(self._clock.now())

    def best_target(self) -> int:
        """The voter that holds most of the log among those in contact, 0 = none."""
        lead = self.consensus.lead
        return 0 if lead is None else lead.best_target(self._clock.now())

    # -- what is asked for

    def propose(self, ops: Sequence[Command], size: int, done: Done, source: int = 0) -> Proposal:
        """Replicate ``ops``, of ``size`` bytes of payload, in one entry; ``done(results)`` is called once.

        TOO_LARGE, NOT_LEADER and UNAVAILABLE are answered only to operations that never reached the log; UNKNOWN if
        this node lost the leadership before it saw the outcome. ``source``: on whose behalf, 0 = the node's own.
        What is returned can be withdrawn.
        """
        proposal = Proposal(ops, size, done, source)
        refusal = self.consensus.propose(proposal)
        if refusal is None:
            self._wake()
        else:
            proposal.refuse(refusal)
        return proposal

    def hold_bulk(self, held: bool) -> None:
        """Clients' large writes wait, or go on. What else is proposed goes on in either case."""
        if self.consensus.hold_bulk(held):
            self._wake()

    def read(self, quorum: bool, done: ReadDone) -> None:
        """Call ``done(OK)`` once a linearizable read may be served, or ``done(why not)``."""
        refusal = self.consensus.read(quorum, done)
        if refusal is None:
            self._wake()
        else:
            done(Code(refusal.code))

    def change_members(self, voters: Sequence[int], done: ChangeDone) -> None:
        """Make ``voters`` the voters of the group: one more or one less than now.

        ``done`` is called once: OK when the change is committed and applied here, or was so before; CONDITION_FAILED
        with the reason if it was refused; NOT_LEADER, UNAVAILABLE and UNKNOWN as with ``propose``. A newcomer must be a
        learner that has caught up.
        """
        self.consensus.change_members(voters, done, self._clock.now())
        self._wake()

    def set_learners(self, nodes: Sequence[int]) -> None:
        """The nodes that hold the log without a vote, all of them. Voters among them are passed over."""
        if self.consensus.set_learners(nodes, self._clock.now()):
            self._wake()

    def transfer(self, target: int) -> bool:
        """Hand the leadership to ``target``, as soon as it holds the whole log. Returns whether it was started."""
        started = self.consensus.transfer(target, self._clock.now())
        if started:
            self._wake()
        return started

    # -- events

    def receive(self, peer: int, message: list[Any]) -> bool:
        """Take a message of this group. Returns False if it is malformed; then nothing was changed."""
        if peer == self.node:
            return True
        if not check(message):
            return False
        if message[1] in OF_SNAPSHOTS:
            if self.membership.knows(peer) or message[1] not in ANSWERS:
                self.snapshots.receive(peer, message)
                self._wake()
        elif self.consensus.receive(peer, message, self._clock.now()):
            self._wake()
        return True

    def tick(self) -> None:
        """Called every few milliseconds: time-outs and heartbeats."""
        if self.consensus.tick(self._clock.now()):
            self._wake()

    def on_durable(self, lsn: int) -> None:
        """The node's WAL is on stable storage up to record ``lsn``."""
        syncing = self._syncing
        if syncing and syncing[0][0] <= lsn:
            count = 0
            while syncing and syncing[0][0] <= lsn:
                count = syncing.popleft()[1]
            if self.consensus.synced(count):
                self._wake()

    def close(self) -> None:
        """The node hosts this replica no more: answer everything that waits. Nothing may be asked of it again."""
        self.snapshots.close()
        self.consensus.close()
        self.step()
        self.apply()
        for done in self._reading:
            done(Code.UNAVAILABLE)

    # -- the turn's end

    def step(self) -> None:
        """Take one step with all events of this turn, and persist and send what it leads to.

        With :meth:`apply`, the only place that executes a step's result.
        """
        ready = self.consensus.step(self._clock.now())
        wal, outbox = self._wal, self._outbox
        if ready.records:
            for record in ready.records:
                record.write(wal, self.group)
            self._recorded += len(ready.records)
            self._syncing.append((wal.appended, self._recorded))
        for node, message in ready.messages:
            outbox.send(node, message)
        if ready.after:
            durable = not self._syncing or self._syncing[-1][0] <= wal.durable
            send = outbox.send if durable else outbox.send_when_durable
            for node, message in ready.after:
                send(node, message)
        for level, text in ready.notes:
            log.log(level, "group %d: %s", self.group, text)
        if ready.committed:
            self._applying += ready.committed
            self._behind = ready.more
        self._reading += ready.reads
        self._answers += ready.answers
        self._fetch = ready.fetch or self._fetch
        self._more = ready.more

    @property
    def acknowledging(self) -> bool:
        """Whether an acknowledgement waits for the disk: a leader waits for it, and nobody for what is applied.

        Unless there is more to apply than one step hands out.
        """
        return bool(self._syncing) and self.consensus.lead is None and not self._behind

    def apply(self) -> None:
        """Apply, serve and answer what steps have led to since the last call."""
        if self._applying:
            self._apply_entries()
        if self._reading and not self._applying:
            reading, self._reading = self._reading, []
            for done in reading:
                done(Code.OK)
        answers, self._answers = self._answers, []
        for to, what in answers:
            try:
                to(what)
            except Exception:
                # An exception in one caller's callback must not keep the others from their answers.
                log.exception("the receiver of results failed")
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            self.snapshots.fetch(fetch)
        if self._applying or self._more:
            self._wake()
        self.snapshots.maybe_take()

    def _apply_entries(self) -> None:
        applying, machine, held = self._applying, self.machine, self.core.applied_index()
        index = 0
        while applying:
            entry = applying[0]
            if entry.index > held:  # else a snapshot has overtaken it
                ops = None if entry.opened is None else entry.opened.ops
                if machine.prepares and not prepared(machine, entry.command, ops):
                    break
                index = entry.index
                self._apply_entry(entry.command, index, entry.opened)
            applying.popleft()
        if index and self.consensus.applied(index, machine.time, self._clock.now()):
            self._wake()

    def _apply_entry(self, command: bytes, index: int, opened: OpenEntry | None) -> None:
        self.snapshots.bytes_since += len(command)
        try:
            if opened is None:
                if is_batch(command):
                    self.machine.apply(*unpack_batch(command), encoded(command))
                return
            results = self.machine.apply(opened.time, opened.ops, encoded(command))
        except Exception as error:
            self._applying.clear()
            self._fatal(error)
            raise BrokenInvariant(f"group {self.group}: entry {index} cannot be applied: {error!r}") from error
        opened.answer(results)
